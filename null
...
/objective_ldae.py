"""The loss: prediction targets, weights lambda_t over time steps, and weights w_i over PCA dimensions."""

from typing import Any

import torch

from .configuration_ldae import LDAEConfig
from .tokenizer_ldae import Float32Buffers


def loss_weight_table(loss_weighting: str, gammas: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """Compute lambda_t of eq. 3 for t = 0 .. T - 1.

    Args:
        loss_weighting (`str`): `"uniform"`: 1 (eq. 2); `"gamma2"`: gamma_t^2; `"inverse_variance"`: 1 / (1 +
            sigma_t^2) (Sec. 4.3).
        gammas, sigmas (`torch.Tensor` of shape `(T,)`): The noise schedule.

    Returns:
        `torch.Tensor` of shape `(T,)`.

    Raises:
        ValueError: If the weighting is unknown.
    """
    if loss_weighting == "uniform":
        return torch.ones_like(gammas)
    if loss_weighting == "gamma2":
        return gammas**2
    if loss_weighting == "inverse_variance":
        return 1 / (1 + sigmas**2)
    raise ValueError(f"loss_weighting={loss_weighting!r} is unknown; choose uniform, gamma2 or inverse_variance.")


def clean_latent(prediction: torch.Tensor, zt: torch.Tensor, gamma: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Compute z_0 from predicted noise: eq. 1 solved for z_0, or 0 where gamma_t is 0.

    Args:
        prediction (`torch.Tensor` of shape `(B, ...)`): Predicted eps.
        zt (`torch.Tensor` of shape `(B, ...)`): The noisy latent.
        gamma, sigma (`torch.Tensor` of shape `(B,)`).
    """
    shape = (-1,) + (1,) * (zt.ndim - 1)
    gamma, sigma = gamma.reshape(shape), sigma.reshape(shape)
    return torch.where(gamma > 0, (zt - sigma * prediction) / gamma.clamp(min=1e-12), 0.0)


class LDAEObjective(Float32Buffers):
    """The loss that a configuration describes. Its buffer `loss_weights` `(T,)` is computed and not saved."""

    loss_weights: torch.Tensor

    def __init__(self, config: LDAEConfig, gammas: torch.Tensor, sigmas: torch.Tensor):
        super().__init__()
        self.prediction_target = config.prediction_target
        self.residual_weight = config.residual_weight
        self.register_buffer(
            "loss_weights", loss_weight_table(config.loss_weighting, gammas, sigmas), persistent=False
        )

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
        """Compute the loss.

        Args:
            prediction (`torch.FloatTensor` of shape `(B, N, d)` or `(B, N, D)`): In the target's space.
            x0 (`torch.FloatTensor` of shape `(B, N, D)`, *optional*): Clean patches, needed if the target is the
                image.
            z0, eps (`torch.FloatTensor` of shape `(B, N, d)`): Clean latents and the noise.
            timesteps (`torch.LongTensor` of shape `(B,)`).
            tokenizer: The latent tokenizer, with the inverse PCA and V.

        Returns:
            `torch.FloatTensor` of shape `()`: mean over examples, tokens and dimensions of lambda_t * w_i * r_i^2.
        """
        if self.prediction_target == "noise":
            error = (eps - prediction).square().sum(dim=2)  # (B, N), eq. 2
        elif self.prediction_target == "latent":
            error = (z0 - prediction).square().sum(dim=2)  # eq. 3
        else:
            target = x0 if self.prediction_target == "image" else tokenizer.decode(z0)
            residue = target - prediction  # type: ignore[operator] # (B, N, D)
            error = residue.square().sum(dim=2)
            # eq. 4 without the D x D product: V is orthonormal, so ||r||^2 is the sum over all its dimensions.
            w_rest = self.residual_weight
            if w_rest < 1:
                error = w_rest * error + (1 - w_rest) * tokenizer.project(residue).square().sum(dim=2)
        lambda_t = self.loss_weights[timesteps]  # (B,)
        return (lambda_t[:, None] * error).mean() / prediction.shape[2]
