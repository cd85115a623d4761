"""The noise processes of diffusion models, DDPM and EDM: noise levels, training draws, preconditioning and loss.

Equations and tables are those of Karras et al. (2022, arXiv 2206.00364). In its terms both processes turn a network F
into a denoiser of x = x_0 + sigma eps, so that one sampler serves both:

    D(x; sigma) = c_skip x + c_out F(c_in x; c_noise)    (eq. 7)
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch.nn import functional as F

from .corruption_ldae import Corruption, corrupt
from .diffusers_ddae import diffusers_class, require_fields
from .objective_ldae import clean_latent
from .randomness_ldae import TIMESTEPS, keyed_normal


# A network: noisy maps (B, c, h, w) and a number for the time of each (B,) to maps (B, c, h, w).
Network = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Preconditioning = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]  # c_skip, c_out, c_in, c_noise


class NoiseProcess(Corruption, ABC):
    """A noise process over maps `(B, c, h, w)`: images, or the latents of an autoencoder.

    For features the network sees gamma_t x_0 + sigma_t eps at one of T time steps t, counted from 0, with `gammas` and
    `sigmas` `(T,)`. `levels` `(T,)` are the noise levels sigma of x_0 + sigma eps at them, rising. In training noise
    is drawn by [`draw`]; the drawn `times` `(B,)` are time steps for DDPM, and noise levels sigma for EDM.

    Args:
        config (`dict`): The schedule, as [`complete`] returns it.
    """

    default_schedule: ClassVar[dict[str, Any]]
    length_field: ClassVar[str]  # the field of the schedule that holds T
    default_up_block: ClassVar[int]  # the block of a UNet's up path, counted from 1, at which features are read
    samplers: ClassVar[tuple[str, ...]]  # the default comes first
    samples_by_scheduler: ClassVar[bool]  # first-order samplers run diffusers' scheduler over the trained time steps
    levels: torch.Tensor

    @classmethod
    def complete(cls, schedule: dict[str, Any] | None) -> dict[str, Any]:
        """Fill in the fields that a schedule leaves out."""
        return cls.default_schedule | (schedule or {})

    @classmethod
    @abstractmethod
    def default_feature_timestep(cls, num_timesteps: int, latent_dit: bool) -> int:
        """Return the time step of the DDAE authors' public code, for a schedule of T time steps."""

    @classmethod
    @abstractmethod
    def search_timesteps(cls, num_timesteps: int) -> list[int]:
        """Return time steps to search for the best features."""

    @abstractmethod
    def network_times(self, timesteps: torch.Tensor) -> torch.Tensor:
        """Return the numbers that the network embeds for time steps `(B,)`."""

    @abstractmethod
    def times_at(self, timesteps: torch.Tensor) -> torch.Tensor:
        """Return the training times that correspond to time steps `(B,)`."""

    @abstractmethod
    def scales(self, times: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the factors of x_0 and eps, each `(B,)`, at training times `(B,)`."""

    def add_noise(self, x0: torch.Tensor, eps: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """Add noise to maps `(B, c, h, w)` at training times `(B,)`."""
        return corrupt(x0, eps.to(x0.dtype), *self.scales(times))

    @abstractmethod
    def predict(self, network: Network, noisy: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """Return what the process trains: eps for DDPM, the clean maps for EDM."""

    @abstractmethod
    def reconstruct(self, prediction: torch.Tensor, noisy: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """Return the clean maps that a prediction implies."""

    @abstractmethod
    def loss(self, prediction: torch.Tensor, x0: torch.Tensor, eps: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """Return the mean loss `()` of predictions `(B, c, h, w)`."""

    @abstractmethod
    def precondition(self, sigma: torch.Tensor) -> Preconditioning:
        """Return c_skip, c_out, c_in and c_noise at noise levels of any shape, each of that shape (Table 1)."""

    def denoise(self, network: Network, noisy: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Estimate clean maps by D(x; sigma) in float32, for x `(B, c, h, w)` and sigma `(B,)` or a shared `(1,)`."""
        c_skip, c_out, c_in, c_noise = self.precondition(sigma)
        output = network(_as_map(c_in) * noisy, c_noise)
        with torch.autocast(output.device.type, enabled=False):
            return _as_map(c_skip) * noisy + _as_map(c_out) * output.float()

    @abstractmethod
    def sampling_levels(self, steps: int) -> torch.Tensor:
        """Return the falling noise levels of a sampling schedule, without the final 0: `(steps,)`, on the CPU."""


class DDPM(NoiseProcess):
    """The process of DDPM: the network predicts eps from gamma_t x_0 + sigma_t eps, with gamma_t^2 + sigma_t^2 = 1.

    gamma_t^2 is the cumulative product of alphas of diffusers' `DDPMScheduler`, whose fields the schedule has. t
    counts from 0, so that t = 10 is t = 11 of the DDAE authors' public code.
    """

    default_schedule = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
    length_field = "num_train_timesteps"
    default_up_block = 6
    samplers = ("ddim", "ancestral", "heun")
    samples_by_scheduler = True

    @classmethod
    def default_feature_timestep(cls, num_timesteps: int, latent_dit: bool) -> int:
        """Return 10 of 1000, or 121 for a DiT behind an autoencoder (CIFAR-10; the code has 81 for Tiny-ImageNet)."""
        return (121 if latent_dit else 10) * num_timesteps // 1000

    @classmethod
    def search_timesteps(cls, num_timesteps: int) -> list[int]:
        """Return time steps from 0 to T / 4."""
        return [share * num_timesteps // 1000 for share in (0, 10, 20, 40, 80, 160, 250)]

    def initial_buffers(self) -> dict[str, torch.Tensor]:
        scheduler: Any = diffusers_class("DDPMScheduler")
        require_fields(scheduler, self.config, "scheduler_config")
        with torch.device("cpu"):  # from_pretrained builds models with "meta" as default
            gamma2 = scheduler(**self.config).alphas_cumprod.float()
        return {"gammas": gamma2.sqrt(), "sigmas": (1 - gamma2).sqrt()}

    @property
    def levels(self) -> torch.Tensor:  # type: ignore[override]
        """sigma_t / gamma_t."""
        return self.sigmas / self.gammas

    def network_times(self, timesteps: torch.Tensor) -> torch.Tensor:
        return timesteps  # as in diffusers; the authors' public code embeds t / 1000, so its weights do not fit

    def times_at(self, timesteps: torch.Tensor) -> torch.Tensor:
        return timesteps

    def scales(self, times: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.gammas[times], self.sigmas[times]

    def predict(self, network: Network, noisy: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        return network(noisy, times)

    def reconstruct(self, prediction: torch.Tensor, noisy: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        return clean_latent(prediction, noisy.float(), *self.scales(times))

    def loss(self, prediction: torch.Tensor, x0: torch.Tensor, eps: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """Return the mean squared error of the noise, with the same weight at all time steps."""
        return F.mse_loss(prediction, eps.float())

    def precondition(self, sigma: torch.Tensor) -> Preconditioning:
        """Return the coefficients of D(x; sigma) = x - sigma F(x / (1 + sigma^2)^(1/2); t) ("VP" in Table 1)."""
        return torch.ones_like(sigma), -sigma, (1 + sigma**2).rsqrt(), fractional_timesteps(sigma, self.levels)

    def sampling_levels(self, steps: int) -> torch.Tensor:
        """Return EDM's levels for CIFAR-10, as far as the network was trained (DDPM's own schedule ends at 0.01)."""
        lowest, highest = self.levels[0].item(), self.levels[-1].item()
        edm = EDM.default_schedule
        return noise_levels(steps, max(lowest, edm["sigma_min"]), min(highest, edm["sigma_max"]), edm["rho"])


class EDM(NoiseProcess):
    """The process of EDM: the network is preconditioned, and trained at log-normal noise levels sigma.

    Its time steps are the levels of its sampling schedule, from `sigma_min` at t = 0 to `sigma_max`; the DDAE authors'
    public code counts them from 1.
    """

    default_schedule = {
        "sigma_data": 0.5,  # standard deviation of the data
        "p_mean": -1.2,  # of ln sigma in training
        "p_std": 1.2,
        "sigma_min": 0.002,  # of the sampling schedule, as are the next three
        "sigma_max": 80.0,
        "rho": 7.0,
        "num_steps": 18,
    }
    length_field = "num_steps"
    default_up_block = 7
    samplers = ("heun", "ddim", "ancestral")
    samples_by_scheduler = False

    @classmethod
    def complete(cls, schedule: dict[str, Any] | None) -> dict[str, Any]:
        """Fill in the fields that a schedule leaves out, and refuse those that EDM does not have."""
        completed = super().complete(schedule)
        if unknown := sorted(completed.keys() - cls.default_schedule.keys()):
            raise ValueError(
                f"scheduler_config has {unknown[0]!r}, which EDM does not have; choose from "
                f"{', '.join(cls.default_schedule)}."
            )
        return completed

    @classmethod
    def default_feature_timestep(cls, num_timesteps: int, latent_dit: bool) -> int:
        """Return level 3 of 18, where sigma is 0.0599."""
        return min(3, num_timesteps - 1)

    @classmethod
    def search_timesteps(cls, num_timesteps: int) -> list[int]:
        """Return levels 1 to 8."""
        return list(range(1, 9))

    def initial_buffers(self) -> dict[str, torch.Tensor]:
        levels = self.sampling_levels(self.config["num_steps"]).flip(0)
        c_in = self.precondition(levels)[2]
        return {"gammas": c_in, "sigmas": c_in * levels, "levels": levels}

    def network_times(self, timesteps: torch.Tensor) -> torch.Tensor:
        """Return c_noise of the levels."""
        return self.precondition(self.levels[timesteps])[3]

    def draw(self, positions: torch.Tensor, seed: int) -> torch.Tensor:
        """Draw noise levels sigma from a log-normal distribution."""
        normal = keyed_normal(seed, TIMESTEPS, positions, 1)[:, 0]
        return (self.config["p_mean"] + self.config["p_std"] * normal).exp()

    def times_at(self, timesteps: torch.Tensor) -> torch.Tensor:
        return self.levels[timesteps]

    def scales(self, times: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.ones_like(times), times

    def add_noise(self, x0: torch.Tensor, eps: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        return super().add_noise(x0.float(), eps, times.float())

    def predict(self, network: Network, noisy: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        return self.denoise(network, noisy, times.float())

    def reconstruct(self, prediction: torch.Tensor, noisy: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        return prediction

    def loss(self, prediction: torch.Tensor, x0: torch.Tensor, eps: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        """Return the mean squared error of the clean maps, weighted by lambda(sigma)."""
        return (_as_map(self.weight(times.float())) * (prediction - x0.float()) ** 2).mean()

    def weight(self, sigma: torch.Tensor) -> torch.Tensor:
        """Return lambda(sigma) = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 = 1 / c_out^2 (Table 1)."""
        return (sigma**2 + self.config["sigma_data"] ** 2) / (sigma * self.config["sigma_data"]) ** 2

    def precondition(self, sigma: torch.Tensor) -> Preconditioning:
        sigma_data = self.config["sigma_data"]
        total = sigma**2 + sigma_data**2
        return sigma_data**2 / total, sigma * sigma_data / total.sqrt(), total.rsqrt(), sigma.log() / 4

    def sampling_levels(self, steps: int) -> torch.Tensor:
        return noise_levels(steps, self.config["sigma_min"], self.config["sigma_max"], self.config["rho"])


NOISE_PROCESSES: dict[str, type[NoiseProcess]] = {"ddpm": DDPM, "edm": EDM}


def noise_levels(steps: int, sigma_min: float, sigma_max: float, rho: float) -> torch.Tensor:
    """Return levels from `sigma_max` down to `sigma_min` (eq. 5), as a tensor `(steps,)` on the CPU."""
    share = torch.linspace(0, 1, steps, dtype=torch.float64, device="cpu")
    first, last = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return ((first + share * (last - first)) ** rho).float()


def fractional_timesteps(sigma: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Find the time steps of noise levels, given the rising levels `(T,)` of all time steps.

    They are interpolated in log sigma and clamped to the first and the last. A rounded time step would make
    D(x; sigma) jump between levels, which costs a second-order sampler its order.

    Example:
        >>> fractional_timesteps(torch.tensor([0.1, 2.0, 4.0, 1e3]), torch.tensor([1.0, 4.0, 5.0]))
        tensor([0.0000, 0.5000, 1.0000, 2.0000])
    """
    after = torch.searchsorted(levels.to(sigma), sigma).clamp(1, len(levels) - 1)
    low, high = levels[after - 1].log(), levels[after].log()
    return after - 1 + ((sigma.log() - low) / (high - low)).clamp(0, 1)


def _as_map(values: torch.Tensor) -> torch.Tensor:
    return values.reshape(-1, 1, 1, 1)
