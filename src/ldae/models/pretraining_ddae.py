"""Pre-training of DDAE: the whole network of an unconditional diffusion model in pixel space, and its loss."""

from typing import Any

import torch
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, auto_docstring, can_return_tuple

from .configuration_ddae import DDAEConfig
from .modeling_ddae import DDAEModel, DDAEPreTrainedModel
from .pretraining_ldae import DrawnCorruptionMixin, LDAEForPreTrainingOutput


@auto_docstring(
    custom_intro="""
    The whole network of an unconditional diffusion model of pixels, a `UNet2DModel` or `DiTTransformer2DModel` of
    diffusers, with its loss (Sec. 3). With `parametrization="ddpm"` it predicts the noise eps, with the mean squared
    error at all time steps as loss; with `"edm"` it predicts the clean image, preconditioned and weighted as in Karras
    et al. (2022).

    The weights are those of a [`DDAEModel`] and of the blocks after its tap: [`DDAEModel.from_pretrained`] reads an
    encoder from them.
    """
)
class DDAEForPreTraining(DrawnCorruptionMixin, DDAEPreTrainedModel):
    ddae: Any

    def __init__(self, config: DDAEConfig):
        super().__init__(config)
        require_pretrainable(config)
        self.ddae = DDAEModel(config, whole=True)
        self.config = self.ddae.config  # with the tap and its width filled in
        self.post_init()

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        pixel_values: torch.Tensor,
        timesteps: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        class_labels: torch.Tensor | None = None,
        augmentation_labels: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> LDAEForPreTrainingOutput:
        r"""Denoise images and compute the loss.

        Args:
            timesteps (`torch.LongTensor` of shape `(batch_size,)`, *optional*): Time step of each image, as
                [`~DDAEForPreTraining.draw_corruption`] draws it; for EDM the noise level sigma, a `torch.FloatTensor`.
                By default drawn anew by torch's generator in every call, in training and in evaluation alike.
            noise (`torch.FloatTensor` of the shape of `pixel_values`, *optional*): The noise eps; by default drawn as
                the time steps are.
            class_labels (*optional*): Refused: the model is trained without labels.
            augmentation_labels (`torch.FloatTensor` of shape `(batch_size, 9)`, *optional*): How each image was
                augmented, as [`~ldae.data.augment_geometry`] returns it, for a model with
                `config.augmentation_labels`; zeros, no augmentation, by default.

        Returns:
            `loss` `()`; `prediction`, the noise for DDPM and the clean images for EDM, and `reconstruction`, the clean
            images, both `(B, C, H, W)`.

        Example:
            >>> import torch
            >>> from ldae import DDAEConfig, DDAEForPreTraining
            >>> unet = {"sample_size": 16, "block_out_channels": [8, 16], "norm_num_groups": 4, "layers_per_block": 1}
            >>> unet |= {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
            >>> model = DDAEForPreTraining(DDAEConfig(denoiser_config=unet))
            >>> timesteps, noise = model.draw_corruption(torch.arange(2), seed=0)
            >>> outputs = model(torch.zeros(2, 3, 16, 16), timesteps, noise)
            >>> outputs.loss.shape, outputs.reconstruction.shape
            (torch.Size([]), torch.Size([2, 3, 16, 16]))
        """
        if class_labels is not None:
            raise ValueError("class_labels was given, but a DDAE is trained without labels; leave it out.")
        if augmentation_labels is not None and not self.config.augmentation_labels:
            raise ValueError("augmentation_labels was given, but config.augmentation_labels is False; set it to True.")
        self.ddae.check_images(pixel_values)
        timesteps, noise = self.draw_where_missing(pixel_values, timesteps, noise)
        process = self.ddae.corruption
        noisy = process.add_noise(pixel_values, noise, timesteps)  # (B, C, H, W)
        prediction = process.predict(self._network(augmentation_labels), noisy, timesteps)
        with torch.autocast(prediction.device.type, enabled=False):
            prediction = prediction.float()
            loss = process.loss(prediction, pixel_values, noise, timesteps)
            reconstruction = process.reconstruct(prediction, noisy, timesteps)
        return LDAEForPreTrainingOutput(loss=loss, prediction=prediction, reconstruction=reconstruction)

    def denoise(
        self, xt: torch.Tensor, timesteps: torch.Tensor, augmentation_labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Run the network itself on noisy images.

        Args:
            xt (`torch.FloatTensor` of shape `(B, C, H, W)`): Its input.
            timesteps (`torch.Tensor` of shape `(B,)` or `(1,)`): The number that it embeds for the time of each image,
                or the shared one: the time step for DDPM, c_noise for EDM.
            augmentation_labels (`torch.FloatTensor` of shape `(B, 9)`, *optional*): As in the forward.
        """
        added, embed = None, self.ddae.augmentation
        if embed is not None:
            labels = xt.new_zeros(len(xt), embed.in_features) if augmentation_labels is None else augmentation_labels
            added = embed(labels.to(xt.dtype))  # (B, E)
        return self.ddae.adapter.forward(self.ddae, xt, timesteps.expand(len(xt)), added)

    def denoise_at(
        self, noisy: torch.Tensor, sigma: torch.Tensor, augmentation_labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Estimate clean images from x = x_0 + sigma eps by D(x; sigma), in float32.

        The network of a DDPM is called at the time step where sigma_t / gamma_t is sigma, which may be a fraction; see
        [`~ldae.models.noise_ddae.fractional_timesteps`].

        Args:
            noisy (`torch.FloatTensor` of shape `(B, C, H, W)`): x.
            sigma (`torch.FloatTensor` of shape `(B,)` or `(1,)`): Noise level of each image, or the shared one.
            augmentation_labels (`torch.FloatTensor` of shape `(B, 9)`, *optional*): As in the forward.
        """
        return self.ddae.corruption.denoise(self._network(augmentation_labels), noisy, sigma)

    def _network(self, augmentation_labels: torch.Tensor | None) -> Any:
        return lambda xt, times: self.denoise(xt, times, augmentation_labels)

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """Shape `(C, H, W)` of one image's noise: that of its pixels."""
        c: Any = self.config
        return c.num_channels, c.image_size, c.image_size


def require_pretrainable(config: DDAEConfig) -> None:
    """Refuse configurations that cannot be pre-trained."""

    def require(name: str, value: Any, holds: bool, allowed: str) -> None:
        if not holds:
            raise ValueError(f"{name}={value!r} cannot be pre-trained; it must be {allowed}.")

    network: Any = config.denoiser_config
    kind, taken = config.denoiser_type, config.num_channels
    dit = kind == "DiTTransformer2DModel"
    require("denoiser_type", kind, dit or kind == "UNet2DModel", "'UNet2DModel' or 'DiTTransformer2DModel'")
    require("vae_config", config.vae_config, config.vae_config is None, "None: pre-training is on pixels")
    # the row that diffusers' DiT drops labels to
    null_class = network.get("num_embeds_ada_norm", 1000) if dit else None
    no_classes = "left out: pre-training has no classes"
    require("null_class", config.null_class, config.null_class == null_class, no_classes)
    channels = network.get("out_channels", taken if dit else 3)
    given_back = channels == taken or (dit and channels is None)
    require("out_channels", channels, given_back, f"{taken}, the number of channels that the network takes")
    prediction_type = (config.scheduler_config or {}).get("prediction_type", "epsilon")
    require("prediction_type", prediction_type, prediction_type == "epsilon", "'epsilon'")


__all__ = ["DDAEForPreTraining"]
