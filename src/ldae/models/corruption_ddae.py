"""The noise of a diffusion model: x_t = gamma_t x_0 + sigma_t eps, by its scheduler's configuration."""

from typing import Any

import torch

from .corruption_ldae import Corruption
from .diffusers_ddae import diffusers_class, require_fields
from .preconditioning_ddae import noise_levels, preconditioning


class DDAECorruption(Corruption):
    """
    Corruption of a scheduler of diffusers: gamma_t^2 is its cumulative product of alphas, sigma_t^2 = 1 - gamma_t^2.
    The same as its `add_noise`: t counts from 0, so that t = 10 is t = 11 of the DDAE authors' public code. Buffers
    `gammas`, `sigmas` of shape `(T,)`, computed, not saved.

    Args:
        config ([`DDAEConfig`]): With `scheduler_config`.
    """

    def tables(self) -> dict[str, torch.Tensor]:
        kind: Any = diffusers_class("DDPMScheduler")
        require_fields(kind, self.config.scheduler_config, "scheduler_config")
        with torch.device("cpu"):  # from_pretrained builds models with "meta" as default
            gamma2 = kind(**self.config.scheduler_config).alphas_cumprod.float()
        return {"gammas": gamma2.sqrt(), "sigmas": (1 - gamma2).sqrt()}

    def network_times(self, timesteps: torch.Tensor) -> torch.Tensor:
        """
        Return what the network is told of time steps: t itself, as diffusers' pipelines tell their networks.

        The DDAE authors' public code tells its UNet t / 1000. Both are embedded by the same sinusoids, so weights of one
        do not fit the other.
        """
        return timesteps


class EDMCorruption(DDAECorruption):
    """
    Input of a network that was trained as EDM, c_in (x_0 + sigma eps), at the levels of its sampling schedule. Level 0 is
    `sigma_min`, the cleanest; the DDAE authors' public code calls it 1. Buffers `gammas` = c_in, `sigmas` = c_in sigma,
    `levels` = sigma, of shape `(T,)`.

    Args:
        config ([`DDAEConfig`]): With `scheduler_config`.
    """

    levels: torch.Tensor

    def tables(self) -> dict[str, torch.Tensor]:
        c = self.config.scheduler_config
        levels = noise_levels(c["num_steps"], c["sigma_min"], c["sigma_max"], c["rho"]).flip(0)
        c_in = preconditioning(levels, c["sigma_data"])[2]
        return {"gammas": c_in, "sigmas": c_in * levels, "levels": levels}

    def network_times(self, timesteps: torch.Tensor) -> torch.Tensor:
        """c_noise of the levels."""
        return preconditioning(self.levels[timesteps], self.config.scheduler_config["sigma_data"])[3]
