"""The output of an autoencoder's training, and the KL divergence and noise of variational ones."""

from dataclasses import dataclass

import torch
from transformers.utils import ModelOutput


@dataclass
class AutoencoderOutput(ModelOutput):
    """Output of the training modules of tokenizers.

    Args:
        loss (`torch.FloatTensor` of shape `()`): The loss to minimize.
        reconstruction (`torch.FloatTensor` of shape `(B, C, H, W)`): The images, encoded and decoded, attached to the
            graph.
        parts (`dict[str, torch.FloatTensor]`): The terms of the loss before their weights, detached, of shape `()`:
            `mse` and, where the module has them, `kl`, `perceptual`, `generator`, `discriminator`, `adaptive_weight`.
    """

    loss: torch.Tensor | None = None
    reconstruction: torch.Tensor | None = None
    parts: dict[str, torch.Tensor] | None = None


def gaussian_kl(mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
    """Return KL[N(mean, exp(log_variance)) | N(0, 1)] of each latent value, in nats, computed in float32 (Sec. 4.2).

    Args:
        mean (`torch.Tensor`): Of any shape.
        log_variance (`torch.Tensor`): Broadcasts with `mean`.

    Example:
    ```python
    >>> import torch
    >>> gaussian_kl(torch.tensor([0.0, 2.0]), torch.zeros(2))
    tensor([0., 2.])

    ```
    """
    mean, log_variance = mean.float(), log_variance.float()
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)


def reshape_noise(noise: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
    """Return noise in the shape and precision of latents; both begin with the batch.

    Raises:
        ValueError: If the two differ in size.
    """
    if noise.shape[0] != latents.shape[0] or noise.numel() != latents.numel():
        raise ValueError(
            f"noise has shape {tuple(noise.shape)}; give {latents[0].numel()} numbers for each of the "
            f"{latents.shape[0]} images, as noise_size says."
        )
    return noise.reshape(latents.shape).to(latents)
