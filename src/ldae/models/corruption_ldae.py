"""Noise schedules, and the noise that is added by them: z_t = gamma_t z_0 + sigma_t eps (Sec. 3)."""

from typing import Any

import torch

from .configuration_ldae import LDAEConfig
from .randomness_ldae import TIMESTEPS, keyed_uniform
from .tokenizer_ldae import Float32Buffers


def noise_schedule_tables(config: LDAEConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute signal and noise levels for t = 0 .. T - 1.

    Args:
        config ([`LDAEConfig`]): With a `noise_schedule`: `"linear_beta"`: gamma_t^2 = prod_s (1 - beta_s), beta linear
            (DDPM); `"linear_gamma2"`: gamma_t^2 linear, 1 > gamma_t^2 >= 0 (Sec. 4.1); `"linear_sigma"`: gamma = 1,
            sigma linear from 0 to `sigma_max` (Sec. 4.3); `"constant"`: gamma = 1, one level `sigma` (Sec. 4.3).

    Returns:
        `gammas` and `sigmas`, `torch.FloatTensor` of shape `(T,)` in float32, on the CPU.
    """
    schedule, total = config.noise_schedule, config.num_train_timesteps
    # float64 until the end; the device is named because from_pretrained builds models with "meta" as default
    options: dict = {"dtype": torch.float64, "device": "cpu"}
    ones = torch.ones(total, **options)
    if schedule == "linear_sigma":
        return ones.float(), torch.linspace(0, config.sigma_max, total, **options).float()
    if schedule == "constant":
        return ones.float(), (config.sigma * ones).float()
    if schedule == "linear_beta":
        gamma2 = (1 - torch.linspace(config.beta_start, config.beta_end, total, **options)).cumprod(dim=0)
    else:
        gamma2 = torch.linspace(1, 0, total + 1, **options)[1:]
    return gamma2.sqrt().float(), (1 - gamma2).sqrt().float()


def corrupt(z0: torch.Tensor, eps: torch.Tensor, gamma: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Compute z_t = gamma_t z_0 + sigma_t eps (eq. 1) for z_0 and eps `(B, ...)`, gamma and sigma `(B,)`."""
    shape = (-1,) + (1,) * (z0.ndim - 1)
    return gamma.reshape(shape) * z0 + sigma.reshape(shape) * eps


class Corruption(Float32Buffers):
    """A module that adds noise by two buffers, `gammas` and `sigmas` `(T,)`, which are computed and not saved."""

    gammas: torch.Tensor
    sigmas: torch.Tensor

    def __init__(self, config: Any):
        super().__init__()
        self.config = config
        self.register_buffers(persistent=False)

    def draw(self, positions: torch.Tensor, seed: int) -> torch.Tensor:
        """Draw the time steps `(B,)` of the examples at some positions in a run, uniform over 0 .. T - 1."""
        return (keyed_uniform(seed, TIMESTEPS, positions, 1)[:, 0] * len(self.gammas)).long()

    def forward(self, z0: torch.Tensor, eps: torch.Tensor | None, timesteps: torch.Tensor) -> torch.Tensor:
        """Compute z_t from z_0 and eps `(B, ...)` at time steps `(B,)` or a shared `(1,)`; `None` means eps = 0."""
        if eps is None:
            return self.gammas[timesteps].reshape(-1, *[1] * (z0.ndim - 1)) * z0
        return corrupt(z0, eps.to(z0.dtype), self.gammas[timesteps], self.sigmas[timesteps])


class LDAECorruption(Corruption):
    """The corruption of an l-DAE's latents, by the `noise_schedule` of its [`LDAEConfig`]."""

    def initial_buffers(self) -> dict[str, torch.Tensor]:
        gammas, sigmas = noise_schedule_tables(self.config)
        return {"gammas": gammas, "sigmas": sigmas}
