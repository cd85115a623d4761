"""Pre-training of DDAE: the whole denoiser of an unconditional diffusion model in pixel space, and its loss."""

import math
from typing import Any

import torch
from torch.nn import functional as F
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, auto_docstring, can_return_tuple

from .configuration_ddae import EDM_SCHEDULE, DDAEConfig
from .modeling_ddae import DDAEModel, DDAEPreTrainedModel
from .modeling_ldae import LDAEForPreTrainingOutput
from .objective_ldae import clean_latent
from .preconditioning_ddae import ddpm_preconditioning, loss_weight, noise_levels, preconditioning
from .randomness_ldae import NOISE, TIMESTEPS, keyed_normal, keyed_uniform


@auto_docstring(
    custom_intro="""
    The whole network of an unconditional diffusion model of pixels, a `UNet2DModel` or `DiTTransformer2DModel` of diffusers,
    with its loss: what the paper trains (Sec. 3). With `parametrization="ddpm"` it predicts the noise eps of x_t, by the mean squared error of all time
    steps alike; with `"edm"` the clean image from x_0 + sigma eps, preconditioned and weighted as Karras et al. (2022) do.

    The weights are those of a [`DDAEModel`] and of what runs after its tap: [`DDAEModel.from_pretrained`] reads an encoder
    of them.
    """
)
class DDAEForPreTraining(DDAEPreTrainedModel):
    ddae: Any

    def __init__(self, config: DDAEConfig):
        super().__init__(config)
        require_pretrainable(config)
        self.ddae = DDAEModel(config, whole=True)
        self.post_init()

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        pixel_values: torch.Tensor,
        timesteps: torch.Tensor,
        noise: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        augmentation_labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> LDAEForPreTrainingOutput:
        r"""
        timesteps (`torch.LongTensor` of shape `(batch_size,)`):
            Time step of each image, as of [`~DDAEForPreTraining.draw_corruption`]; of EDM its sigma, a
            `torch.FloatTensor`.
        noise (`torch.FloatTensor` of the shape of `pixel_values`):
            The noise eps.
        class_labels (*optional*):
            Not possible: the model is trained without labels.
        augmentation_labels (`torch.FloatTensor` of shape `(batch_size, 9)`, *optional*):
            How the images were augmented, as [`~ldae.data.augment_geometry`] says, for a model with
            `config.augmentation_labels`; by default zeros: not at all.

        Returns:
            `loss` `()`; `prediction`, of the noise (of EDM the clean images), and `reconstruction`, the clean images that it stands for, both
            `(B, C, H, W)`.

        Example:

        ```python
        >>> import torch
        >>> from ldae import DDAEConfig, DDAEForPreTraining
        >>> unet = {"sample_size": 16, "block_out_channels": [8, 16], "norm_num_groups": 4, "layers_per_block": 1}
        >>> unet |= {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
        >>> model = DDAEForPreTraining(DDAEConfig(denoiser_config=unet))
        >>> timesteps, noise = model.draw_corruption(torch.arange(2), seed=0)
        >>> outputs = model(torch.zeros(2, 3, 16, 16), timesteps, noise)
        >>> outputs.loss.shape, outputs.reconstruction.shape
        (torch.Size([]), torch.Size([2, 3, 16, 16]))

        ```
        """
        if class_labels is not None:
            raise ValueError("class_labels was given, but a DDAE is trained without labels.")
        if augmentation_labels is not None and not self.config.augmentation_labels:
            raise ValueError("augmentation_labels was given, but config.augmentation_labels is False; set it to True.")
        self.ddae._check_images(pixel_values, any_size=False)
        if self.config.parametrization == "edm":
            sigma = timesteps.float()
            noisy = pixel_values.float() + _as_map(sigma) * noise
            denoised = self.denoise_at(noisy, sigma, augmentation_labels)  # (B, C, H, W)
            weight = _as_map(loss_weight(sigma, self.sigma_data))
            loss = (weight * (denoised - pixel_values.float()) ** 2).mean()
            return LDAEForPreTrainingOutput(loss=loss, prediction=denoised, reconstruction=denoised)
        xt = self.ddae.corruption(pixel_values, noise, timesteps)  # (B, C, H, W)
        prediction = self.denoise(xt, timesteps, augmentation_labels)
        with torch.autocast(prediction.device.type, enabled=False):
            prediction = prediction.float()
            loss = F.mse_loss(prediction, noise.float())
            reconstruction = self.predicted_images(prediction, xt, timesteps)
        return LDAEForPreTrainingOutput(loss=loss, prediction=prediction, reconstruction=reconstruction)

    def denoise(
        self, xt: torch.Tensor, timesteps: torch.Tensor, augmentation_labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """
        The network alone: what it predicts from noisy images.

        Args:
            xt (`torch.FloatTensor` of shape `(B, C, H, W)`): Noisy images.
            timesteps (`torch.Tensor` of shape `(B,)` or `(1,)`): Time step of each, or the shared one; of EDM c_noise.
            augmentation_labels (`torch.FloatTensor` of shape `(B, 9)`, *optional*): As of [`~DDAEForPreTraining.forward`].

        Returns:
            `torch.Tensor` of shape `(B, C, H, W)`.
        """
        return self.ddae.adapter.predict(self.ddae, xt, timesteps.expand(len(xt)), augmentation_labels)

    def denoise_at(
        self, noisy: torch.Tensor, sigma: torch.Tensor, augmentation_labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """
        D(x; sigma): the clean images that noisy ones x = x_0 + sigma eps are taken for, in float32.

        A DDPM's network is told the t at which sigma_t / gamma_t is sigma, with a fraction where that is between two; see
        [`~ldae.models.preconditioning_ddae.ddpm_preconditioning`].

        Args:
            noisy (`torch.FloatTensor` of shape `(B, C, H, W)`): x.
            sigma (`torch.FloatTensor` of shape `(B,)` or `(1,)`): Noise level of each, or the shared one.
            augmentation_labels (`torch.FloatTensor` of shape `(B, 9)`, *optional*): As of [`~DDAEForPreTraining.forward`].
        """
        if self.config.parametrization == "edm":
            c_skip, c_out, c_in, c_noise = preconditioning(sigma, self.sigma_data)
        else:
            c_skip, c_out, c_in, c_noise = ddpm_preconditioning(sigma, self.ddpm_levels)
        output = self.denoise(_as_map(c_in) * noisy, c_noise, augmentation_labels)
        with torch.autocast(output.device.type, enabled=False):
            return _as_map(c_skip) * noisy + _as_map(c_out) * output.float()

    @property
    def ddpm_levels(self) -> torch.Tensor:
        """sigma_t / gamma_t of DDPM, rising, of shape `(T,)`."""
        return self.ddae.corruption.sigmas / self.ddae.corruption.gammas

    def sampling_levels(self, steps: int) -> torch.Tensor:
        """
        Falling noise levels of EDM's sampling schedule, of shape `(steps,)`; of a DDPM those of its fields for CIFAR-10
        (80 to 0.002, rho 7) as far as it was trained: DDPM's own schedule goes down to 0.01.
        """
        c: Any = self.config.scheduler_config
        if self.config.parametrization == "edm":
            return noise_levels(steps, c["sigma_min"], c["sigma_max"], c["rho"])
        lowest, highest = self.ddpm_levels[0].item(), self.ddpm_levels[-1].item()
        sigma_min, sigma_max = max(lowest, EDM_SCHEDULE["sigma_min"]), min(highest, EDM_SCHEDULE["sigma_max"])
        return noise_levels(steps, sigma_min, sigma_max, EDM_SCHEDULE["rho"])

    @property
    def sigma_data(self) -> float:
        """sigma_d of EDM."""
        return (self.config.scheduler_config or {})["sigma_data"]

    def predicted_images(self, prediction: torch.Tensor, xt: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """The clean images `(B, C, H, W)` that a prediction stands for."""
        corruption = self.ddae.corruption
        return clean_latent(prediction, xt.float(), corruption.gammas[timesteps], corruption.sigmas[timesteps])

    def draw_corruption(self, example_positions: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Draw time steps and noise, as a pure function of each example's position in the run: not of the process, nor of
        the micro-batch. Call it outside the (compiled) forward.

        Args:
            example_positions (`torch.LongTensor` of shape `(B,)`): Position of each example in the run.
            seed (`int`): Seed of the run.

        Returns:
            `timesteps`, a `torch.LongTensor` of shape `(B,)`, uniform over 0 .. T - 1 (of EDM a `torch.FloatTensor` of
            sigmas, log-normal), and `noise`, a
            `torch.FloatTensor` of shape `(B, C, H, W)`, on the device of `example_positions`.
        """
        if self.config.parametrization == "edm":
            c: Any = self.config.scheduler_config
            normal = keyed_normal(seed, TIMESTEPS, example_positions, 1)[:, 0]
            return (c["p_mean"] + c["p_std"] * normal).exp(), self._draw_noise(example_positions, seed)
        u = keyed_uniform(seed, TIMESTEPS, example_positions, 1)[:, 0]
        return (u * self.config.num_train_timesteps).long(), self._draw_noise(example_positions, seed)

    def _draw_noise(self, positions: torch.Tensor, seed: int) -> torch.Tensor:
        shape: Any = (self.config.num_channels, self.config.image_size, self.config.image_size)
        return keyed_normal(seed, NOISE, positions, math.prod(shape)).view(-1, *shape)


def require_pretrainable(config: DDAEConfig) -> None:
    """
    Refuse what is not trained from scratch.

    Raises:
        ValueError: naming the field, its value and what is allowed.
    """
    network: Any = config.denoiser_config
    dit = config.denoiser_type == "DiTTransformer2DModel"
    schedule = config.scheduler_config or {}
    none = network.get("num_embeds_ada_norm", 1000) if dit else None  # the row that diffusers' DiT drops labels to
    channels = network.get("out_channels", None if dit else 3)
    pixels = "a DDAE is pre-trained on pixels, without classes: leave it out"
    rules = [
        (
            "denoiser_type",
            config.denoiser_type,
            dit or config.denoiser_type == "UNet2DModel",
            "not pre-trained as a DDAE; it must be 'UNet2DModel' or 'DiTTransformer2DModel'",
        ),
        ("vae_config", config.vae_config, config.vae_config is None, f"not possible; {pixels}"),
        ("null_class", config.null_class, config.null_class == none, f"not possible; {pixels}"),
        (
            "out_channels",
            channels,
            channels == config.num_channels or (dit and channels is None),
            f"not possible; the network predicts as many channels as it is given, {config.num_channels}",
        ),
        (
            "prediction_type",
            schedule.get("prediction_type"),
            schedule.get("prediction_type", "epsilon") == "epsilon",
            "not pre-trained; it must be 'epsilon'",
        ),
    ]
    for name, value, holds, reason in rules:
        if not holds:
            raise ValueError(f"{name}={value!r} is {reason}.")


def _as_map(values: torch.Tensor) -> torch.Tensor:
    return values.reshape(-1, 1, 1, 1)


__all__ = ["DDAEForPreTraining"]
