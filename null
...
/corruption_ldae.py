"""Noise schedules, and the noise that is added by them: z_t = gamma_t z_0 + sigma_t eps (Sec. 3)."""

from typing import Any

import torch

from .configuration_ldae import LDAEConfig
from .randomness_ldae import NOISE, keyed_normal
from .tokenizer_ldae import Float32Buffers


def noise_schedule_tables(
    noise_schedule: str,
    num_train_timesteps: int,
    *,
    beta_start: float = 1e-4,
    beta_end: float = 0.02,
    sigma_max: float = 2**0.5,
    sigma: float = (1 / 3) ** 0.5,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute signal and noise levels for t = 0 .. T - 1.

    Args:
        noise_schedule (`str`): `"linear_beta"`: gamma_t^2 = prod_s (1 - beta_s), beta linear (DDPM);
            `"linear_gamma2"`: gamma_t^2 linear, 1 > gamma_t^2 >= 0 (Sec. 4.1); `"linear_sigma"`: gamma = 1, sigma
            linear from 0 to `sigma_max` (Sec. 4.3); `"constant"`: gamma = 1, one level `sigma` (Sec. 4.3).
        num_train_timesteps (`int`): T.
        beta_start, beta_end (`float`): First and last beta of `"linear_beta"`.
        sigma_max (`float`): Last sigma of `"linear_sigma"`.
        sigma (`float`): The sigma of `"constant"`.

    Returns:
        `gammas` and `sigmas`, `torch.FloatTensor` of shape `(T,)` in float32, on the CPU.

    Raises:
        ValueError: If the schedule is unknown.
    """
    # float64 until the end; the device is named because from_pretrained builds models with "meta" as default
    options: dict = {"dtype": torch.float64, "device": "cpu"}
    ones = torch.ones(num_train_timesteps, **options)
    if noise_schedule == "linear_beta":
        gamma2 = (1 - torch.linspace(beta_start, beta_end, num_train_timesteps, **options)).cumprod(dim=0)
    elif noise_schedule == "linear_gamma2":
        gamma2 = torch.linspace(1, 0, num_train_timesteps + 1, **options)[1:]
    elif noise_schedule == "linear_sigma":
        return ones.float(), torch.linspace(0, sigma_max, num_train_timesteps, **options).float()
    elif noise_schedule == "constant":
        return ones.float(), (sigma * ones).float()
    else:
        raise ValueError(
            f"noise_schedule={noise_schedule!r} is unknown; choose linear_beta, linear_gamma2, linear_sigma or "
            "constant."
        )
    return gamma2.sqrt().float(), (1 - gamma2).sqrt().float()


def corrupt(z0: torch.Tensor, eps: torch.Tensor, gamma: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Compute z_t = gamma_t z_0 + sigma_t eps (eq. 1) for z_0 and eps `(B, ...)`, gamma and sigma `(B,)`."""
    shape = (-1,) + (1,) * (z0.ndim - 1)
    return gamma.reshape(shape) * z0 + sigma.reshape(shape) * eps


def draw_noise(config: LDAEConfig, positions: torch.Tensor, seed: int) -> torch.Tensor:
    """Draw the noise eps of examples, a pure function of `seed` and each example's position.

    Args:
        config ([`LDAEConfig`]): Gives N and d.
        positions (`torch.LongTensor` of shape `(B,)`): Position of each example in the run.
        seed (`int`): Seed of the run.

    Returns:
        `torch.FloatTensor` of shape `(B, N, d)` in float32, on the device of `positions`.
    """
    n, d = config.num_patches, config.latent_dim
    return keyed_normal(seed, NOISE, positions, n * d).view(-1, n, d)


class Corruption(Float32Buffers):
    """A module that adds noise by two tables, which it computes from a configuration.

    Attributes:
        gammas, sigmas (`torch.FloatTensor` of shape `(T,)`): Buffers, computed and not saved.
    """

    gammas: torch.Tensor
    sigmas: torch.Tensor

    def __init__(self, config: Any):
        super().__init__()
        self.config = config
        for name, value in self.tables().items():
            self.register_buffer(name, value, persistent=False)

    def tables(self) -> dict[str, torch.Tensor]:
        """Compute the buffers, on the CPU."""
        raise NotImplementedError

    def forward(self, z0: torch.Tensor, eps: torch.Tensor | None, timesteps: torch.Tensor) -> torch.Tensor:
        """Add noise.

        Args:
            z0 (`torch.Tensor` of shape `(B, ...)`): Clean latents `(B, N, d)`, or maps.
            eps (`torch.Tensor` of the same shape, *optional*): Noise; `None` for a clean input, where eps = 0.
            timesteps (`torch.LongTensor` of shape `(B,)` or `(1,)`): Time step of each example, or the shared one.

        Returns:
            `torch.Tensor` of the same shape: z_t.
        """
        if eps is None:
            return self.gammas[timesteps].reshape(-1, *[1] * (z0.ndim - 1)) * z0
        return corrupt(z0, eps.to(z0.dtype), self.gammas[timesteps], self.sigmas[timesteps])


class LDAECorruption(Corruption):
    """The corruption of an l-DAE's latents, by the `noise_schedule` of its [`LDAEConfig`]."""

    def tables(self) -> dict[str, torch.Tensor]:
        c = self.config
        gammas, sigmas = noise_schedule_tables(
            c.noise_schedule,
            c.num_train_timesteps,
            beta_start=c.beta_start,
            beta_end=c.beta_end,
            sigma_max=c.sigma_max,
            sigma=c.sigma,
        )
        return {"gammas": gammas, "sigmas": sigmas}
