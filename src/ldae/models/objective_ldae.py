"""The loss: prediction targets, weights lambda_t over time steps, and weights w_i over PCA dimensions."""

from typing import Any

import torch

from .configuration_ldae import LDAEConfig
from .corruption_ldae import noise_schedule_tables
from .tokenizer_ldae import Float32Buffers


def loss_weight_table(loss_weighting: str, gammas: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """Compute lambda_t of eq. 3 `(T,)` for a noise schedule, gammas and sigmas `(T,)`."""
    if loss_weighting == "uniform":
        return torch.ones_like(gammas)  # eq. 2
    if loss_weighting == "gamma2":
        return gammas**2
    return 1 / (1 + sigmas**2)  # "inverse_variance" (Sec. 4.3)


def clean_latent(prediction: torch.Tensor, zt: torch.Tensor, gamma: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Compute z_0 from predicted noise `(B, ...)` and z_t: eq. 1 solved for z_0, or 0 where gamma_t `(B,)` is 0."""
    shape = (-1,) + (1,) * (zt.ndim - 1)
    gamma, sigma = gamma.reshape(shape), sigma.reshape(shape)
    return torch.where(gamma > 0, (zt - sigma * prediction) / gamma.clamp(min=1e-12), 0.0)


class LDAEObjective(Float32Buffers):
    """The loss that a configuration describes. Its buffer `loss_weights` `(T,)` is computed and not saved."""

    loss_weights: torch.Tensor

    def __init__(self, config: LDAEConfig):
        super().__init__()
        self.config = config
        self.register_buffers(persistent=False)

    def initial_buffers(self) -> dict[str, torch.Tensor]:
        return {"loss_weights": loss_weight_table(self.config.loss_weighting, *noise_schedule_tables(self.config))}

    def forward(
        self,
        prediction: torch.Tensor,
        *,
        x0: torch.Tensor | None,
        z0: torch.Tensor,
        eps: torch.Tensor,
        timesteps: torch.Tensor,
        tokenizer: Any,
    ) -> torch.Tensor:
        """Compute the mean over examples, tokens and dimensions of lambda_t * w_i * r_i^2.

        Args:
            prediction (`torch.FloatTensor` of shape `(B, N, d)` or `(B, N, D)`): In the target's space.
            x0 (`torch.FloatTensor` of shape `(B, N, D)`, *optional*): Clean patches, if the target is the image.
            z0 (`torch.FloatTensor` of shape `(B, N, d)`): Clean latents.
            eps (`torch.FloatTensor` of shape `(B, N, d)`): The noise.
            timesteps (`torch.LongTensor` of shape `(B,)`): Time step of each example.
            tokenizer (`torch.nn.Module`): The latent tokenizer, with the inverse PCA and V.
        """
        target = self.config.prediction_target
        if target == "noise":
            error = (eps - prediction).square().sum(dim=2)  # (B, N), eq. 2
        elif target == "latent":
            error = (z0 - prediction).square().sum(dim=2)  # eq. 3
        else:
            clean = x0 if target == "image" else tokenizer.decode(z0)
            residue = clean - prediction  # type: ignore[operator] # (B, N, D)
            error = residue.square().sum(dim=2)
            # eq. 4 without the D x D product: V is orthonormal, so ||r||^2 is the sum over all its dimensions.
            w_rest = self.config.residual_weight
            if w_rest < 1:
                error = w_rest * error + (1 - w_rest) * tokenizer.project(residue).square().sum(dim=2)
        lambda_t = self.loss_weights[timesteps]  # (B,)
        return (lambda_t[:, None] * error).mean() / prediction.shape[2]
