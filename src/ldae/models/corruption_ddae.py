"""The noise of a diffusion model: x_t = gamma_t x_0 + sigma_t eps, by its scheduler's configuration."""

from typing import Any

import torch

from .building_ddae import diffusers_class, require_fields
from .corruption_ldae import Corruption


class DDAECorruption(Corruption):
    """
    The corruption of a scheduler of diffusers: gamma_t^2 is its cumulative product of alphas, sigma_t^2 = 1 - gamma_t^2.
    The same as its `add_noise`. Buffers `gammas`, `sigmas` of shape `(T,)`, computed, not saved.

    Args:
        config ([`DDAEConfig`]): With `scheduler_config`.
    """

    def tables(self) -> dict[str, torch.Tensor]:
        kind: Any = diffusers_class("DDPMScheduler")
        require_fields(kind, self.config.scheduler_config, "scheduler_config")
        with torch.device("cpu"):  # from_pretrained builds models with "meta" as default
            gamma2 = kind(**self.config.scheduler_config).alphas_cumprod.float()
        return {"gammas": gamma2.sqrt(), "sigmas": (1 - gamma2).sqrt()}
