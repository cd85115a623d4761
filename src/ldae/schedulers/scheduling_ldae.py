"""The noise schedules as schedulers of diffusers, which add noise as in training and remove it step by step."""

from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, EDMEulerScheduler
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor

from ldae.models.configuration_ddae import DDAEConfig
from ldae.models.configuration_ldae import LDAEConfig
from ldae.models.corruption_ldae import corrupt, noise_schedule_tables
from ldae.models.objective_ldae import clean_latent, loss_weight_table


# The fields that the scheduler shares with LDAEConfig.
_SHARED_FIELDS = "num_train_timesteps noise_schedule beta_start beta_end sigma_max sigma loss_weighting".split()


class LDAEScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc] # both of diffusers' bases name config_name
    """A scheduler of z_t = gamma_t z_0 + sigma_t eps for t = 0 .. T - 1 (eq. 1), which adds and removes the noise.

    A run's `config.json` is the only source of these fields: [`from_ldae_config`] writes them, and [`verify_matches`]
    refuses others. The last four are derived from the rest for diffusers' own schedulers, and only checked. With
    them `DDPMScheduler` and `DDIMScheduler` load a saved `"linear_beta"` or `"linear_gamma2"` with the same
    `alphas_cumprod`. The other two schedules (gamma = 1) have no betas: diffusers' schedulers refuse to load them,
    because they do not know their `beta_schedule`.

    Args:
        num_train_timesteps (`int`, defaults to 1000): T.
        noise_schedule (`str`, defaults to `"linear_sigma"`): `"linear_beta"`, `"linear_gamma2"`, `"linear_sigma"` or
            `"constant"`; as in [`LDAEConfig`], like the next five.
        beta_start (`float`, defaults to 1e-4), beta_end (`float`, defaults to 0.02): Betas of `"linear_beta"`.
        sigma_max (`float`, defaults to sqrt(2)): Last sigma of `"linear_sigma"`.
        sigma (`float`, defaults to sqrt(1/3)): The sigma of `"constant"`.
        loss_weighting (`str`, defaults to `"inverse_variance"`): lambda_t of eq. 3.
        prediction_type (`str`, defaults to `"sample"`): The model output that `step` expects: the noise, `"epsilon"`,
            or the clean latent, `"sample"`.
        beta_schedule (`str`, *optional*): Derived: `"linear"` for `"linear_beta"`, else the name of the schedule.
        trained_betas (`list[float]`, *optional*): Derived: the betas of `"linear_gamma2"`, else `None`.
        clip_sample (`bool`, defaults to `False`): Always `False`, as latents have no range to clip to.
        timestep_spacing (`str`, defaults to `"trailing"`): Always `"trailing"`, the spacing of `set_timesteps`.

    Attributes:
        gammas, sigmas, loss_weights (`torch.FloatTensor` of shape `(T,)`): gamma_t, sigma_t and lambda_t, in float32.
        timesteps (`torch.LongTensor`): The time steps of the denoising chain, falling.
        init_noise_sigma (`float`): Scale of the noise that generation starts from: the standard deviation of z_T if
            z_0 has unit variance (`latent_scaling` `"global"` or `"per_dim"`).

    Raises:
        ValueError: If [`LDAEConfig`] refuses the fields, `prediction_type` is unknown, or a derived field disagrees
            with `noise_schedule`.

    Example:
        >>> import torch
        >>> from ldae import LDAEScheduler
        >>> scheduler = LDAEScheduler(noise_schedule="linear_gamma2")
        >>> z0, eps = torch.randn(2, 16, 8), torch.randn(2, 16, 8)
        >>> zt = scheduler.add_noise(z0, eps, torch.tensor([10, 900]))
        >>> scheduler.set_timesteps(4)
        >>> scheduler.timesteps.tolist()
        [999, 749, 499, 249]
        >>> scheduler.step(z0, 249, zt).prev_sample.equal(z0)
        True
    """

    _compatibles = ["DDPMScheduler", "DDIMScheduler"]
    order = 1

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        noise_schedule: str = "linear_sigma",
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        sigma_max: float = 2**0.5,
        sigma: float = (1 / 3) ** 0.5,
        loss_weighting: str = "inverse_variance",
        prediction_type: str = "sample",
        beta_schedule: str | None = None,
        trained_betas: list[float] | np.ndarray | None = None,
        clip_sample: bool = False,
        timestep_spacing: str = "trailing",
    ):
        if prediction_type not in ("epsilon", "sample"):
            raise ValueError(f"prediction_type={prediction_type!r} is unknown; choose epsilon or sample.")
        # LDAEConfig checks these fields.
        checked = LDAEConfig(**{name: self.config[name] for name in _SHARED_FIELDS}, feature_timestep=0)
        self.gammas, self.sigmas = noise_schedule_tables(checked)
        self.loss_weights = loss_weight_table(loss_weighting, self.gammas, self.sigmas)
        self._register_fields_of_diffusers()
        self.init_noise_sigma = float((self.gammas[-1] ** 2 + self.sigmas[-1] ** 2).sqrt())
        self.num_inference_steps: int | None = None
        # Until set_timesteps is called: every level, once.
        self._chain = [*range(num_train_timesteps)][::-1][: 1 if noise_schedule == "constant" else None]
        self.timesteps = torch.tensor(self._chain)

    @classmethod
    def from_ldae_config(cls, config: LDAEConfig) -> "LDAEScheduler":
        """Build the scheduler of a model's configuration: the same schedule, with diffusers' name for its target."""
        fields = {name: getattr(config, name) for name in _SHARED_FIELDS}
        return cls(**fields, prediction_type="epsilon" if config.prediction_target == "noise" else "sample")

    def verify_matches(self, config: LDAEConfig) -> None:
        """Refuse a scheduler that disagrees with the model beside which it was loaded; name each such field."""
        right = LDAEScheduler.from_ldae_config(config).config
        names = [name for name in right if not name.startswith("_")]
        wrong = [name for name in names if not _same(self.config.get(name), right[name])]
        if wrong:
            found = ", ".join(f"{name}={_short(self.config.get(name))} not {_short(right[name])}" for name in wrong)
            raise ValueError(
                f"the scheduler disagrees with the model's config.json: {found}. The model was trained with "
                "config.json; write the scheduler again with "
                "LDAEScheduler.from_ldae_config(config).save_pretrained(...)."
            )

    @classmethod
    def from_config(  # type: ignore[override] # diffusers gives config a default that it refuses
        cls, config: dict[str, Any], return_unused_kwargs: bool = False, **kwargs: Any
    ) -> "LDAEScheduler | tuple[LDAEScheduler, dict[str, Any]]":
        """Build a scheduler as diffusers does, but refuse another scheduler's, which has no `noise_schedule`."""
        if "noise_schedule" not in {**config, **kwargs}:
            raise ValueError(
                f"noise_schedule is missing from the configuration of a {config.get('_class_name', 'scheduler')}; "
                "give noise_schedule=... (for DDPM's own: 'linear_beta')."
            )
        return super().from_config(config, return_unused_kwargs, **kwargs)

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Corrupt clean latents (eq. 1), bit for bit as the model does in training.

        Args:
            original_samples (`torch.Tensor` of shape `(B, ...)`): z_0.
            noise (`torch.Tensor` of shape `(B, ...)`): eps.
            timesteps (`torch.LongTensor` of shape `(B,)` or `(1,)`): Time step of each sample, or the shared one.

        Returns:
            `torch.Tensor`: z_t, with the type and device of `original_samples`; the arithmetic is in float32 at least.
        """
        z0, (gamma, sigma) = _wide(original_samples), self._levels(timesteps, original_samples.device)
        return corrupt(z0, noise.to(z0), gamma, sigma).to(original_samples.dtype)

    def scale_model_input(self, sample: torch.Tensor, timestep: int | torch.Tensor | None = None) -> torch.Tensor:
        """Return the model's input at a time step, which is the unchanged sample."""
        return sample

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Set the time steps of the denoising chain, which are evenly spaced and fall from T - 1.

        Args:
            num_inference_steps (`int`): From 1 to T; 1 for the constant schedule.
            device (`str` or `torch.device`, *optional*): Device of `timesteps`.
        """
        total = len(self)
        if self.config["noise_schedule"] == "constant" and num_inference_steps != 1:
            raise ValueError(
                f"num_inference_steps={num_inference_steps} is invalid for noise_schedule='constant', whose one noise "
                "level is removed in 1 step; give 1."
            )
        if not 1 <= num_inference_steps <= total:
            raise ValueError(
                f"num_inference_steps={num_inference_steps} is invalid; give 1 to {total}, the number of time steps."
            )
        steps = total - np.arange(num_inference_steps) * (total / num_inference_steps)
        self._chain = [int(step) - 1 for step in steps.round()]
        self.num_inference_steps = num_inference_steps
        self.timesteps = torch.tensor(self._chain, device=device)

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        eta: float = 0.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """Take one step of the chain, from z_t to z_s, where s is the next lower time step in `timesteps`.

        The last step returns the clean prediction. With eta = 0 a step is deterministic (DDIM, arXiv 2010.02502), with
        eta = 1 ancestral: a draw from q(z_s | z_t, z_0), Gaussian with variance
        v = sigma_s^2 (1 - (gamma_t sigma_s / (gamma_s sigma_t))^2). For any gamma and sigma
        z_s = gamma_s z_0 + sqrt(sigma_s^2 - eta^2 v) eps + eta sqrt(v) noise.

        Args:
            model_output (`torch.Tensor` of shape `(B, ...)`): Predicted noise or clean latent, by `prediction_type`.
            timestep (`int`): t, from 0 to T - 1.
            sample (`torch.Tensor` of shape `(B, ...)`): z_t.
            eta (`float`, defaults to 0): From 0, deterministic, to 1, ancestral.
            generator (`torch.Generator` or a list of one for each sample, *optional*): Generator of the noise for eta
                > 0.
            return_dict (`bool`, defaults to `True`): Return a [`DDIMSchedulerOutput`], or else a tuple.

        Returns:
            [`DDIMSchedulerOutput`] in the type of `sample`; the arithmetic is in float32 at least.

        Raises:
            ValueError: If the time step or eta is out of range.
        """
        t = int(timestep)
        if not 0 <= t < len(self):
            raise ValueError(f"timestep={t} does not exist; choose one of 0 to {len(self) - 1}.")
        if not 0 <= eta <= 1:
            raise ValueError(f"eta={eta} is out of range; give 0 (deterministic) to 1 (ancestral).")
        zt, output = _wide(sample), _wide(model_output)
        gamma_t, sigma_t = self.gammas[t].item(), self.sigmas[t].item()
        if self.config["prediction_type"] == "epsilon":
            eps = output
            z0 = clean_latent(eps, zt, *self._levels(torch.tensor([t]), zt.device))
        else:
            z0 = output
            eps = (zt - gamma_t * z0) / sigma_t if sigma_t > 0 else torch.zeros_like(zt)

        lower = [s for s in self._chain if s < t]
        if not lower or self.config["noise_schedule"] == "constant":
            zs = z0
        else:
            gamma_s, sigma_s = self.gammas[max(lower)].item(), self.sigmas[max(lower)].item()
            v = 0.0
            if sigma_s > 0:  # then sigma_t is, too
                v = sigma_s**2 * max(0.0, 1 - (gamma_t * sigma_s / (gamma_s * sigma_t)) ** 2)
            zs = gamma_s * z0 + max(0.0, sigma_s**2 - eta**2 * v) ** 0.5 * eps
            if eta * v > 0:
                noise = randn_tensor(zt.shape, generator=generator, device=zt.device, dtype=zt.dtype)
                zs = zs + eta * v**0.5 * noise
        zs, z0 = zs.to(sample.dtype), z0.to(sample.dtype)
        return DDIMSchedulerOutput(prev_sample=zs, pred_original_sample=z0) if return_dict else (zs, z0)

    def __len__(self) -> int:
        return self.config["num_train_timesteps"]

    def _levels(self, timesteps: torch.Tensor, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Return gamma and sigma at time steps, on a device; the tables stay on the CPU, where `step` reads them."""
        timesteps = timesteps.to(device)
        return self.gammas.to(device)[timesteps], self.sigmas.to(device)[timesteps]

    def _register_fields_of_diffusers(self) -> None:
        """Derive the fields of diffusers' schedulers for this schedule, and refuse given ones that disagree."""
        schedule = self.config["noise_schedule"]
        derived: dict[str, Any] = {
            "beta_schedule": "linear" if schedule == "linear_beta" else schedule,
            "trained_betas": None,
            "clip_sample": False,
            "timestep_spacing": "trailing",
        }
        if schedule == "linear_gamma2":
            gamma2 = self.gammas.double() ** 2
            previous = torch.cat([gamma2.new_ones(1), gamma2[:-1]])
            derived["trained_betas"] = (1 - gamma2 / previous).tolist()
        for name, value in derived.items():
            given = self.config[name]
            if given is not None and not _same(given, value):
                raise ValueError(
                    f"{name}={_short(given)} disagrees with noise_schedule={schedule!r}, for which it is "
                    f"{_short(value)}; leave it out."
                )
        self.register_to_config(**derived)
        # diffusers drops fields left at their defaults when another class loads a configuration. Its defaults differ
        # from ours, so these fields count as given.
        if "_use_default_values" in self.config:
            at_default = set(self.config["_use_default_values"]) - set(derived) - {"prediction_type", "noise_schedule"}
            self.register_to_config(_use_default_values=sorted(at_default))


def build_scheduler(config: LDAEConfig | DDAEConfig) -> Any:
    """Build the scheduler that a denoiser's configuration describes.

    Returns:
        For an l-DAE an [`LDAEScheduler`]. For a DDPM diffusers' `DDIMScheduler`, which runs from deterministic (eta 0)
        to ancestral (eta 1), converts to other schedulers of diffusers (`DDPMScheduler.from_config`), and clips the
        estimates of the clean image to [-1, 1], as DDPM does. For an EDM diffusers' `EDMEulerScheduler`; our pipeline
        uses Heun's method at the same levels.

    Example:
        >>> from ldae import DDAEConfig
        >>> scheduler = build_scheduler(DDAEConfig())
        >>> type(scheduler).__name__, scheduler.config.beta_end, scheduler.config.clip_sample
        ('DDIMScheduler', 0.02, True)
    """
    if isinstance(config, LDAEConfig):
        return LDAEScheduler.from_ldae_config(config)
    c: Any = config.scheduler_config
    if config.noise_process.samples_by_scheduler:
        return DDIMScheduler.from_config(c)
    return EDMEulerScheduler(**{name: c[name] for name in ("sigma_min", "sigma_max", "sigma_data", "rho")})


def _wide(x: torch.Tensor) -> torch.Tensor:
    """Convert to float32, unless the type is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _same(a: Any, b: Any) -> bool:
    """Return whether two values of a configuration are equal; betas up to the rounding of float32."""
    if isinstance(a, (list, tuple, np.ndarray)) and isinstance(b, (list, tuple, np.ndarray)):
        return len(a) == len(b) and np.allclose(a, b, rtol=1e-6, atol=1e-9)
    return isinstance(a, bool) == isinstance(b, bool) and bool(np.all(a == b))


def _short(value: Any) -> str:
    return f"<{len(value)} values>" if isinstance(value, (list, tuple, np.ndarray)) else repr(value)
