"""The scheduler that a model's configuration describes."""

from typing import Any

from diffusers import DDIMScheduler, EDMEulerScheduler

from ldae.models.configuration_ddae import DDAEConfig
from ldae.models.configuration_ldae import LDAEConfig
from ldae.models.noise_ddae import DDPM
from ldae.schedulers.scheduling_ldae import LDAEScheduler


def build_scheduler(config: LDAEConfig | DDAEConfig) -> Any:
    """Build the scheduler that a model's configuration describes.

    Args:
        config ([`LDAEConfig`] or [`DDAEConfig`]): The configuration of a denoiser.

    Returns:
        For an l-DAE an [`LDAEScheduler`]. For a DDPM diffusers' `DDIMScheduler`, which runs from deterministic (eta 0)
        to
        ancestral (eta 1), converts to other schedulers of diffusers (`DDPMScheduler.from_config`), and clips the
        estimates of the clean image to [-1, 1], as DDPM does. For an EDM diffusers' `EDMEulerScheduler`; our pipeline
        uses Heun's method at the same levels.

    Example:
        >>> from ldae import DDAEConfig
        >>> from ldae.schedulers.build import build_scheduler
        >>> scheduler = build_scheduler(DDAEConfig())
        >>> type(scheduler).__name__, scheduler.config.beta_end, scheduler.config.clip_sample
        ('DDIMScheduler', 0.02, True)
    """
    if isinstance(config, LDAEConfig):
        return LDAEScheduler.from_ldae_config(config)
    if config.noise_process is DDPM:
        return DDIMScheduler.from_config(config.scheduler_config)
    c: Any = config.scheduler_config
    return EDMEulerScheduler(**{name: c[name] for name in ("sigma_min", "sigma_max", "sigma_data", "rho")})
