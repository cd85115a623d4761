"""The scheduler that a model's configuration describes."""

from typing import Any

from diffusers import DDIMScheduler, EDMEulerScheduler

from ldae.models.configuration_ddae import DDAEConfig
from ldae.models.configuration_ldae import LDAEConfig
from ldae.models.noise_ddae import DDPM
from ldae.schedulers.scheduling_ldae import LDAEScheduler


def build_scheduler(config: LDAEConfig | DDAEConfig) -> Any:
    """
    Args:
        config ([`LDAEConfig`] or [`DDAEConfig`]): Of a denoiser.

    Returns:
        An [`LDAEScheduler`]; for a DDAE diffusers' `DDIMScheduler`, whose `eta` leads from deterministic (0) to ancestral
        (1), and which other schedulers of diffusers are made from (`DDPMScheduler.from_config`). It keeps the estimates of
        the clean image in [-1, 1], as DDPM does. For an EDM
        diffusers' `EDMEulerScheduler`; our pipeline goes by Heun's method at the same levels.

    Example:

    ```python
    >>> from ldae import DDAEConfig
    >>> from ldae.schedulers.build import build_scheduler
    >>> scheduler = build_scheduler(DDAEConfig())
    >>> type(scheduler).__name__, scheduler.config.beta_end, scheduler.config.clip_sample
    ('DDIMScheduler', 0.02, True)

    ```
    """
    if isinstance(config, LDAEConfig):
        return LDAEScheduler.from_ldae_config(config)
    if config.noise_process is DDPM:
        return DDIMScheduler.from_config(config.scheduler_config)
    c: Any = config.scheduler_config
    return EDMEulerScheduler(**{name: c[name] for name in ("sigma_min", "sigma_max", "sigma_data", "rho")})
