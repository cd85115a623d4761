"""Training of the patch-wise AE and VAE, two linear maps of a flattened patch (Sec. 4.2)."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from ldae.models.tokenizer_ldae import PatchAutoencoder, patchify, unpatchify
from ldae.tokenizers.autoencoder_output import AutoencoderOutput, gaussian_kl, reshape_noise


SMALLEST_VARIANCE = 1e-12  # of the initial posterior, where kl_weight is close to 0


class LinearAutoencoderTraining(nn.Module):
    """Loss of a linear AE, ||x - U^T V x||^2, or VAE, + KL[V x|N], on centred patches (Sec. 4.2).

    V and U start from one random orthonormal set of rows, the posterior from the optimum of a direction of variance 1.
    The VAE's posterior is N(V x, diag(s^2)) with one learnt variance per latent dimension: with a linear decoder the
    best posterior variance does not depend on x (Lucas et al. 2019, arXiv 1911.02469). At its optimum such a VAE is
    probabilistic PCA with noise variance `kl_weight / 2`: it keeps the principal directions whose variance lambda
    exceeds `kl_weight / 2`, with s^2 = kl_weight / (2 lambda), and ignores the others.

    Args:
        patch_size (`int`): P, in pixels.
        num_channels (`int`): C. A patch has D = C * P * P values.
        latent_dim (`int`): d.
        mean (`torch.Tensor` of shape `(D,)`): Mean of the patches.
        variational (`bool`): Whether it is a VAE.
        kl_weight (`float`): Weight of a VAE's KL divergence; 1 is the paper's sum.

    Parameters: `encoder_weight (d, D)`, the rows of V, `decoder_weight (d, D)`, the rows of U, and the VAE's
    `log_variance (d,)`.

    Example:
    ```python
    >>> import torch
    >>> model = LinearAutoencoderTraining(4, 3, 8, torch.zeros(48), variational=True, kl_weight=0.01)
    >>> model.noise_size(image_size=16)
    128
    >>> output = model(torch.zeros(2, 3, 16, 16), noise=torch.randn(2, 16, 8))
    >>> output.reconstruction.shape, sorted(output.parts)
    (torch.Size([2, 3, 16, 16]), ['kl', 'mse'])

    ```
    """

    mean: torch.Tensor

    def __init__(
        self,
        patch_size: int,
        num_channels: int,
        latent_dim: int,
        mean: torch.Tensor,
        variational: bool,
        kl_weight: float,
    ):
        super().__init__()
        patch_dim = num_channels * patch_size**2
        self.patch_size, self.num_channels, self.latent_dim = patch_size, num_channels, latent_dim
        self.variational, self.kl_weight = variational, kl_weight
        self.register_buffer("mean", mean.detach().float().clone())
        rows = nn.init.orthogonal_(torch.empty(latent_dim, patch_dim))
        self.encoder_weight = nn.Parameter(rows)
        self.decoder_weight = nn.Parameter(rows.clone())
        if variational:
            # Near the optimum: a small kl_weight has hardly any gradient to cross the nats from far away.
            s2 = min(max(kl_weight / 2, SMALLEST_VARIANCE), 1.0)
            self.log_variance = nn.Parameter(torch.full((latent_dim,), math.log(s2)))

    def noise_size(self, image_size: int) -> int:
        """Return how many random numbers an image of this side needs: N * d for the VAE, 0 for the AE."""
        return (image_size // self.patch_size) ** 2 * self.latent_dim if self.variational else 0

    def forward(self, pixel_values: torch.Tensor, noise: torch.Tensor | None = None) -> AutoencoderOutput:
        """Compute the loss.

        Args:
            pixel_values (`torch.Tensor` of shape `(B, C, H, W)`): In [-1, 1].
            noise (`torch.Tensor` of shape `(B, N, d)` or of as many values, *optional*): Standard normal, for a VAE;
                by default the latent is the mean of the posterior.

        Returns:
            [`AutoencoderOutput`]: The loss is the mean squared error of a pixel value plus `kl_weight` times the KL
            divergence summed over latents and divided by the number of pixel values: the ratio of the paper's sums.

        Raises:
            ValueError: If the noise has another size or is given to an AE.
        """
        x = patchify(pixel_values, self.patch_size)  # (B, N, D)
        z = (x - self.mean) @ self.encoder_weight.T  # (B, N, d)
        kl = None
        if self.variational:
            kl = gaussian_kl(z, self.log_variance).sum(dim=-1).mean() / self.mean.numel()  # nats a pixel value
            if noise is not None:
                z = z + (0.5 * self.log_variance).exp() * reshape_noise(noise, z)
        elif noise is not None:
            raise ValueError(
                "noise was given with variational=False; an AE has no posterior to draw from, so leave it out."
            )
        decoded = (z @ self.decoder_weight).float() + self.mean  # (B, N, D)
        mse = F.mse_loss(decoded, x.float())
        parts = {"mse": mse.detach()}
        loss = mse
        if kl is not None:
            loss = loss + self.kl_weight * kl
            parts["kl"] = kl.detach()
        reconstruction = unpatchify(decoded, self.patch_size, *pixel_values.shape[2:])
        return AutoencoderOutput(loss=loss, reconstruction=reconstruction, parts=parts)

    def to_tokenizer(self, latent_scaling: str, variance: torch.Tensor) -> PatchAutoencoder:
        """Build the tokenizer that a denoiser uses.

        Args:
            latent_scaling (`str`): As in [`~ldae.LDAEConfig`].
            variance (`torch.Tensor` of shape `(d,)`): Variance of the latents V (x - mean) over the data.

        Returns:
            [`~ldae.models.tokenizer_ldae.PatchAutoencoder`] on the CPU, with `fitted` set.
        """
        tokenizer = PatchAutoencoder(self.patch_size, self.num_channels, self.latent_dim, latent_scaling)
        state = {
            "mean": self.mean,
            "components": self.encoder_weight,
            "decoder_weight": self.decoder_weight,
            "explained_variance": variance,
            "fitted": torch.tensor(True),
        }
        tokenizer.load_state_dict(state)  # copies into float32
        return tokenizer
