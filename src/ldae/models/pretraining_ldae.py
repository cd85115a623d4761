"""Pre-training of l-DAE: encoder and decoder in one stack of blocks, with the paper's loss (eq. 2 to 4)."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, auto_docstring
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_ldae import LDAEConfig
from .modeling_ldae import LDAEModel, LDAEPreTrainedModel, hidden_states_by_index
from .objective_ldae import LDAEObjective, clean_latent
from .randomness_ldae import CLASS_DROPOUT, keyed_noise, keyed_uniform
from .tokenizer_ldae import patchify, unpatchify
from .transformer_ldae import LDAEHead


@auto_docstring(custom_intro="Output of [`LDAEForPreTraining`].")
@dataclass
class LDAEForPreTrainingOutput(ModelOutput):
    r"""Loss and predictions of pre-training.

    Args:
        loss (`torch.FloatTensor` of shape `()`): Mean over examples, tokens and dimensions of lambda_t * w_i * r_i^2
            (eq. 2 to 4).
        prediction (`torch.FloatTensor` of shape `(batch_size, num_patches, output_dim)`): What the network predicts,
            in the target's space: d values a token for noise and latent, D for images.
        reconstruction (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`): The clean image that
            the prediction stands for, in pixels. `None` in training mode where the tokenizer is a convolutional VAE,
            whose decoder costs more than the step.
    """

    loss: torch.Tensor | None = None
    prediction: torch.Tensor | None = None
    reconstruction: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class DrawnCorruptionMixin:
    """Draws of time steps and noise for a model in pre-training, by the `corruption` of its `base_model`."""

    base_model: Any
    noise_shape: Any  # of one image

    def draw_corruption(self, example_positions: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw time steps and noise, as a pure function of each example's position in the run.

        They depend on neither the process nor the micro-batch. Call it outside the (compiled) forward.

        Args:
            example_positions (`torch.LongTensor` of shape `(B,)`): Position of each example in the run.
            seed (`int`): Seed of the run.

        Returns:
            `timesteps`, a `torch.LongTensor` of shape `(B,)`, uniform over 0 .. T - 1 (for EDM a `torch.FloatTensor`
            of noise levels sigma, log-normal), and `noise`, a `torch.FloatTensor` of shape `(B, *noise_shape)`, on the
            device of `example_positions`.
        """
        noise = keyed_noise(seed, example_positions, self.noise_shape)
        return self.base_model.corruption.draw(example_positions, seed), noise

    def draw_where_missing(
        self, examples: torch.Tensor, timesteps: torch.Tensor | None, noise: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw the time steps and noise of examples `(B, ...)` that were not given, by torch's generator."""
        if timesteps is not None and noise is not None:
            return timesteps, noise
        positions = torch.randint(2**40, (len(examples),), device=examples.device)
        drawn_timesteps, drawn_noise = self.draw_corruption(positions, seed=0)
        return drawn_timesteps if timesteps is None else timesteps, drawn_noise if noise is None else noise


@auto_docstring(
    custom_intro="""
    The whole l-DAE for pre-training: encoder and decoder in one stack of blocks, which predicts the clean image from
    one whose patches' latents are noisy.
    """
)
class LDAEForPreTraining(DrawnCorruptionMixin, LDAEPreTrainedModel):
    def __init__(self, config: LDAEConfig):
        super().__init__(config)
        self.ldae = LDAEModel(config, num_layers=config.total_num_hidden_layers)
        self.head = LDAEHead(config)
        self.objective = LDAEObjective(config)
        self.post_init()

    @merge_with_config_defaults
    @hidden_states_by_index
    @capture_outputs(tie_last_hidden_states=False)
    @auto_docstring
    def forward(
        self,
        pixel_values: torch.Tensor | None = None,
        timesteps: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        class_labels: torch.Tensor | None = None,
        latents: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> LDAEForPreTrainingOutput:
        r"""Denoise images and compute the loss.

        Args:
            timesteps (`torch.LongTensor` of shape `(batch_size,)`, *optional*): Time step of each image, as
                [`~LDAEForPreTraining.draw_corruption`] draws them; by default drawn anew by torch's generator in every
                call, in training and in evaluation alike.
            noise (`torch.FloatTensor` of shape `(batch_size, num_patches, latent_dim)`, *optional*): The noise eps; by
                default drawn as the time steps are.
            class_labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*): Classes to condition on; refused
                where `config.num_class_embeds` is `None`.
            latents (`torch.FloatTensor` of shape `(batch_size, num_patches, latent_dim)`, *optional*): What
                [`~LDAEModel.encode`] gives for the images, computed before; `pixel_values` is then `None`. Not where
                the original image is predicted.

        Example:

        ```python
        >>> import torch
        >>> from ldae import LDAEConfig, LDAEForPreTraining
        >>> model = LDAEForPreTraining(LDAEConfig.from_size("nano", image_size=16, patch_size=4, latent_dim=8))
        >>> timesteps, noise = model.draw_corruption(torch.arange(2), seed=0)
        >>> outputs = model(torch.zeros(2, 3, 16, 16), timesteps, noise)
        >>> outputs.prediction.shape, outputs.reconstruction.shape
        (torch.Size([2, 16, 48]), torch.Size([2, 3, 16, 16]))
        >>> model(torch.zeros(2, 3, 16, 16)).loss.shape  # at time steps and noise that it draws by itself
        torch.Size([])

        ```
        """
        if class_labels is not None and self.config.num_class_embeds is None:
            raise ValueError(
                "class_labels was given, but num_class_embeds=None: this model is trained without labels."
            )
        x0 = None
        if latents is not None:
            if pixel_values is not None or self.config.prediction_target == "image":
                raise ValueError("latents take the place of pixel_values, and not where prediction_target='image'.")
            z0 = latents.float()
        else:
            if pixel_values is None:
                raise ValueError("pixel_values is missing; give the images, or their latents.")
            self.ldae.check_images(pixel_values)
            x0 = patchify(pixel_values, self.config.patch_size).float()  # (B, N, D)
            z0 = self.ldae.encode(pixel_values)  # (B, N, d)
        timesteps, noise = self.draw_where_missing(z0, timesteps, noise)
        zt = self.ldae.corruption(z0, noise, timesteps)  # (B, N, d)
        prediction = self.denoise(zt, timesteps, class_labels, **kwargs)  # (B, N, output_dim)

        with torch.autocast(prediction.device.type, enabled=False):
            prediction = prediction.float()
            clean: dict[str, Any] = {"x0": x0, "z0": z0, "eps": noise.to(z0.dtype)}
            loss = self.objective(prediction, **clean, timesteps=timesteps, tokenizer=self.ldae.tokenizer)
            costly = self.training and self.config.latent_tokenizer == "conv_vae"
            reconstruction = None if costly else self.predicted_images(prediction, zt, timesteps)
        return LDAEForPreTrainingOutput(loss=loss, prediction=prediction, reconstruction=reconstruction)

    def denoise(
        self, zt: torch.Tensor, timesteps: torch.Tensor, class_labels: torch.Tensor | None = None, **kwargs: Any
    ) -> torch.Tensor:
        """Predict from noisy latents, by the network without the loss.

        Args:
            zt (`torch.FloatTensor` of shape `(B, num_patches, latent_dim)`): Noisy latents.
            timesteps (`torch.LongTensor` of shape `(B,)` or `(1,)`): Time step of each, or the shared one.
            class_labels (`torch.LongTensor` of shape `(B,)`, *optional*): Classes; the null class by default.

        Returns:
            `torch.Tensor` of shape `(B, num_patches, output_dim)`: in the target's space.
        """
        grid = self.config.image_size // self.config.patch_size
        hidden = self.ldae.embeddings(self.ldae.blocks_input(zt), grid, grid)  # (B, N, C)
        conditioning = self.ldae.conditioning(timesteps, class_labels)  # (B, c)
        for layer in self.ldae.layers:
            hidden = layer(hidden, conditioning, **kwargs)
        return self.head(hidden, conditioning)  # (B, N, output_dim)

    def predicted_latents(self, prediction: torch.Tensor, zt: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Convert a prediction, in the target's space, to clean latents `(B, N, d)`."""
        target, corruption = self.config.prediction_target, self.ldae.corruption
        if target == "noise":
            return clean_latent(prediction, zt, corruption.gammas[timesteps], corruption.sigmas[timesteps])
        return prediction if target == "latent" else self.ldae.tokenizer.encode(prediction)

    def predicted_images(self, prediction: torch.Tensor, zt: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Convert a prediction, in the target's space, to clean images `(B, C, H, W)`."""
        c = self.config
        size = (c.image_size, c.image_size)
        if c.prediction_target in ("image", "projected_image"):
            return unpatchify(prediction, c.patch_size, *size)
        return self.ldae.tokenizer.decode_images(self.predicted_latents(prediction, zt, timesteps), *size)

    @property
    def noise_shape(self) -> tuple[int, int]:
        """Shape `(N, d)` of one image's noise: that of its latents."""
        return self.config.num_patches, self.config.latent_dim

    def drop_labels(self, class_labels: torch.Tensor, example_positions: torch.Tensor, seed: int) -> torch.Tensor:
        """Replace a share `class_dropout_prob` of the labels by the null class, as a pure function of the positions.

        Args:
            class_labels (`torch.LongTensor` of shape `(B,)`).
            example_positions, seed: as of [`~LDAEForPreTraining.draw_corruption`].

        Returns:
            `torch.LongTensor` of shape `(B,)`.
        """
        null_class = self.config.num_class_embeds
        if null_class is None:
            raise ValueError("num_class_embeds=None: this model is not conditioned on labels, there are none to drop.")
        u = keyed_uniform(seed, CLASS_DROPOUT, example_positions, 1)[:, 0]
        return torch.where(u < self.config.class_dropout_prob, null_class, class_labels)


__all__ = ["LDAEForPreTraining", "LDAEForPreTrainingOutput"]
