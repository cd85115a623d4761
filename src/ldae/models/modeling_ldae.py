"""The l-DAE models (Chen et al. 2024, arXiv 2401.14404): pre-training, encoder, classifier, backbone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.modeling_outputs import BackboneOutput, BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, auto_docstring, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_ldae import LDAEConfig
from .corruption_ldae import LDAECorruption, draw_noise
from .features_ldae import FeatureExtractionMixin
from .hidden_states_ldae import hidden_states_by_index, record_every
from .objective_ldae import LDAEObjective, clean_latent, loss_weight_table
from .randomness_ldae import CLASS_DROPOUT, TIMESTEPS, keyed_uniform
from .tokenizer_conv_ldae import ConvVAETokenizer, build_tokenizer
from .tokenizer_ldae import PatchTokenizer, patchify, unpatchify
from .transformer_ldae import (
    LDAEAttention,
    LDAEConditioning,
    LDAEEmbeddings,
    LDAEHead,
    LDAEHeadProjection,
    LDAELayer,
    LDAEModulation,
)


@auto_docstring(custom_intro="Output of [`LDAEForPreTraining`].")
@dataclass
class LDAEForPreTrainingOutput(ModelOutput):
    r"""
    loss (`torch.FloatTensor` of shape `()`):
        Mean over examples, tokens and dimensions of lambda_t * w_i * r_i^2 (eq. 2 to 4).
    prediction (`torch.FloatTensor` of shape `(batch_size, num_patches, output_dim)`):
        What the network predicts, in the target's space: d values a token for noise and latent, D for images.
    reconstruction (`torch.FloatTensor` of shape `(batch_size, num_channels, height, width)`):
        The clean image that the prediction stands for, in pixels. `None` in training mode where the tokenizer is a
        convolutional VAE, whose decoder costs more than the step.
    """

    loss: torch.Tensor | None = None
    prediction: torch.Tensor | None = None
    reconstruction: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@auto_docstring
class LDAEPreTrainedModel(PreTrainedModel):
    config: LDAEConfig
    base_model_prefix = "ldae"
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]
    supports_gradient_checkpointing = True
    _no_split_modules = ["LDAELayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": record_every(LDAELayer), "attentions": LDAEAttention}
    _input_embed_layer = "projection"
    # An encoder loads from a whole denoiser: the decoder's blocks and its head stay behind.
    _keys_to_ignore_on_load_unexpected = [r"^(ldae\.)?layers\.\d+\.", r"^(head|classifier)\."]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """
        Initialize like DiT, but the time MLP by Xavier too: Xavier linear maps, zero gates and head.

        DiT draws the time MLP with a standard deviation of 0.02, whatever its width. That suits a width of 1024; in a
        narrow network the conditioning then starts almost at zero and the gates hardly open. Computed buffers are
        computed again.
        """
        if isinstance(module, (LDAEModulation, LDAEHeadProjection)):
            init.zeros_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, LDAEEmbeddings):
            init.copy_(module.position_embeddings, module.positions(module.grid, module.grid))
        elif isinstance(module, (PatchTokenizer, ConvVAETokenizer)):
            for name, value in module.unfitted_state().items():
                init.copy_(getattr(module, name), value)
        elif isinstance(module, LDAECorruption):
            for name, value in module.tables().items():
                init.copy_(getattr(module, name), value)
        elif isinstance(module, LDAEObjective):
            corruption = LDAECorruption(self.config).tables()
            init.copy_(module.loss_weights, loss_weight_table(self.config.loss_weighting, **corruption))


@auto_docstring(
    custom_intro="""
    The l-DAE encoder: images in, features out. Clean input at one time step by default, hence deterministic.
    """
)
class LDAEModel(FeatureExtractionMixin, LDAEPreTrainedModel):
    pooling = "mean of tokens, LayerNorm without affine"
    paper_probe = {"crop": "resized"}  # App. A, as in MAE
    fixed_prefixes = ("tokenizer.",)

    def __init__(self, config: LDAEConfig, num_layers: int | None = None):
        r"""
        num_layers (`int`, *optional*):
            How many blocks to build; defaults to the encoder's, `config.num_hidden_layers`.
        """
        super().__init__(config)
        self.tokenizer: Any = build_tokenizer(config)
        self.corruption = LDAECorruption(config)
        self.embeddings = LDAEEmbeddings(config)
        self.conditioning = LDAEConditioning(config)
        num_layers = config.num_hidden_layers if num_layers is None else num_layers
        self.layers = nn.ModuleList([LDAELayer(config) for _ in range(num_layers)])
        # By name: for the whole tokenizer, transformers would turn the boolean `fitted` into a float32 too.
        floats = (name for name, value in self.tokenizer.state_dict().items() if value.is_floating_point())
        self._keep_in_fp32_modules_strict = {f"tokenizer.{name.partition('.')[0]}" for name in floats}
        shape = (config.num_patches, config.hidden_size)
        self.feature_layers: dict[int, tuple[int, ...]] = dict.fromkeys(range(1, num_layers + 1), shape)
        self.post_init()

    @merge_with_config_defaults
    @hidden_states_by_index
    @capture_outputs(tie_last_hidden_states=False)
    @auto_docstring
    def forward(
        self,
        pixel_values: torch.Tensor,
        timesteps: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        r"""
        timesteps (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
            Time step of each image; by default `config.feature_timestep` for all.
        noise (`torch.FloatTensor` of shape `(batch_size, num_patches, latent_dim)`, *optional*):
            The noise eps to corrupt the latents with at `timesteps`; by default the input stays clean.

        Example:

        ```python
        >>> import torch
        >>> from ldae import LDAEConfig, LDAEModel
        >>> model = LDAEModel(LDAEConfig.from_size("nano", image_size=16, patch_size=4, latent_dim=8)).eval()
        >>> outputs = model(torch.zeros(2, 3, 16, 16))
        >>> outputs.last_hidden_state.shape, outputs.pooler_output.shape
        (torch.Size([2, 16, 128]), torch.Size([2, 128]))

        ```
        """
        if timesteps is None:
            shared_t = self.config.feature_timestep
            timesteps = torch.full((1,), shared_t, dtype=torch.long, device=pixel_values.device)
        clean = self.prepare_input(pixel_values, noise, bool(interpolate_pos_encoding))
        hidden = self._embed(clean, timesteps, noise, pixel_values.shape[2:])  # (B, N, C)
        conditioning = self.conditioning(timesteps)  # (B or 1, c)

        depth = self.default_layer
        for layer in self.layers[:depth]:
            hidden = layer(hidden, conditioning, **kwargs)
        features = self.normalize(hidden)
        if self._records(kwargs):  # deeper blocks run only if their hidden states are asked for
            for layer in self.layers[depth:]:
                hidden = layer(hidden, conditioning, **kwargs)
        return BaseModelOutputWithPooling(last_hidden_state=features, pooler_output=features.mean(dim=1))

    @property
    def default_layer(self) -> int:
        """The block that features are read after by default, counted from 1."""
        return self.config.feature_layer or self.config.num_hidden_layers

    @property
    def search_layers(self) -> list[int]:
        """All blocks that the model holds."""
        return list(self.feature_layers)

    @property
    def build_options(self) -> dict[str, Any]:
        """Arguments that build a model of the same size."""
        return {"num_layers": len(self.layers)}

    def prepare_input(self, pixel_values: torch.Tensor, noise: torch.Tensor | None, any_size: bool) -> torch.Tensor:
        """
        Check images `(B, C, H, W)` and give what the time steps share.

        Returns:
            `torch.Tensor`: clean latents `(B, N, d)`, or the patches `(B, N, D)` where no noise is added and
            `config.project_clean_input` is false.
        """
        self._grid_of(pixel_values, any_size)
        if noise is None and not self.config.project_clean_input:
            return patchify(pixel_values, self.config.patch_size)
        return self.encode(pixel_values)

    def input_tokens(
        self, clean: torch.Tensor, timesteps: torch.Tensor, noise: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Corrupt what [`~LDAEModel.prepare_input`] gave to the blocks' input `(B, N, input_dim)`."""
        if noise is None and not self.config.project_clean_input:
            return clean
        return self.blocks_input(self.corruption(clean, noise, timesteps))

    def _embed(
        self, clean: torch.Tensor, timesteps: torch.Tensor, noise: torch.Tensor | None, size: Sequence[int]
    ) -> torch.Tensor:
        height, width = (side // self.config.patch_size for side in size)
        return self.embeddings(self.input_tokens(clean, timesteps, noise), height, width)  # (B, N, C)

    def activations(
        self,
        clean: torch.Tensor,
        layers: Sequence[int],
        timesteps: torch.Tensor,
        noise: torch.Tensor | None,
        read: Callable[[torch.Tensor], torch.Tensor],
        size: tuple[int, int],
    ) -> dict[int, torch.Tensor]:
        """Run the blocks up to the deepest of `layers`, and read the tokens after each through the LayerNorm."""
        hidden = self._embed(clean, timesteps, noise, size)  # (B, N, C)
        conditioning = self.conditioning(timesteps)  # (1, c)
        found = {}
        for number, layer in enumerate(self.layers[: max(layers)], start=1):
            hidden = layer(hidden, conditioning)
            if number in layers:
                found[number] = read(self.normalize(hidden.float()))
        return found

    def noise_shape(self, pixel_values: torch.Tensor) -> tuple[int, int]:
        """Return the shape of one image's noise, `(N, d)`."""
        return self.config.num_patches, self.config.latent_dim

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Images `(B, C, H, W)` to clean latents z_0 `(B, N, d)`, in float32 also under autocast."""
        with torch.autocast(pixel_values.device.type, enabled=False):
            return self.tokenizer.encode_images(pixel_values)

    def blocks_input(self, zt: torch.Tensor) -> torch.Tensor:
        """Noisy latents `(B, N, d)` as the blocks see them: as they are, or as the image they stand for (Fig. 1)."""
        if self.config.input_space == "latent":
            return zt
        with torch.autocast(zt.device.type, enabled=False):
            return self.tokenizer.decode(zt)  # (B, N, D)

    def normalize(self, hidden: torch.Tensor) -> torch.Tensor:
        """
        Normalize hidden states `(B, N, C)` to features by a LayerNorm without affine parameters.

        The paper pools tokens by their mean (App. A) and does not mention this norm, which is our choice.
        """
        return F.layer_norm(hidden, (self.config.hidden_size,), eps=self.config.layer_norm_eps)

    def _records(self, kwargs: Any) -> bool:
        names = ("output_hidden_states", "output_attentions")
        return any(kwargs.get(name) or getattr(self.config, name, False) for name in names)

    def _grid_of(self, pixel_values: torch.Tensor, any_size: bool) -> tuple[int, int]:
        channels, height, width = pixel_values.shape[1:]
        c, p = self.config, self.config.patch_size
        if channels != c.num_channels:
            raise ValueError(
                f"pixel_values has {channels} channels; the model was made for num_channels={c.num_channels}."
            )
        if not any_size and (height, width) != (c.image_size, c.image_size):
            raise ValueError(
                f"pixel_values is {height}x{width}; the model was made for image_size={c.image_size}. Resize the "
                "images, or pass interpolate_pos_encoding=True for any multiple of the patch size."
            )
        if height % p or width % p:
            raise ValueError(f"pixel_values is {height}x{width}; both must be multiples of patch_size={p}.")
        return height // p, width // p


@auto_docstring(
    custom_intro="""
    The whole l-DAE for pre-training: encoder and decoder in one stack of blocks, which predicts the clean image from
    one whose patches' latents are noisy.
    """
)
class LDAEForPreTraining(LDAEPreTrainedModel):
    def __init__(self, config: LDAEConfig):
        super().__init__(config)
        self.ldae = LDAEModel(config, num_layers=config.total_num_hidden_layers)
        self.head = LDAEHead(config)
        self.objective = LDAEObjective(config, **self.ldae.corruption.tables())
        self.post_init()

    @merge_with_config_defaults
    @hidden_states_by_index
    @capture_outputs(tie_last_hidden_states=False)
    @auto_docstring
    def forward(
        self,
        pixel_values: torch.Tensor | None,
        timesteps: torch.Tensor,
        noise: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        latents: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> LDAEForPreTrainingOutput:
        r"""
        timesteps (`torch.LongTensor` of shape `(batch_size,)`):
            Time step of each image, as [`~LDAEForPreTraining.draw_corruption`] draws them.
        noise (`torch.FloatTensor` of shape `(batch_size, num_patches, latent_dim)`):
            The noise eps.
        class_labels (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
            Classes to condition on; refused where `config.num_class_embeds` is `None`.
        latents (`torch.FloatTensor` of shape `(batch_size, num_patches, latent_dim)`, *optional*):
            What [`~LDAEModel.encode`] gives for the images, computed before; `pixel_values` is then `None`. Not where
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
            self.ldae._grid_of(pixel_values, any_size=False)
            x0 = patchify(pixel_values, self.config.patch_size).float()  # (B, N, D)
            z0 = self.ldae.encode(pixel_values)  # (B, N, d)
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
        """
        Predict from noisy latents, by the network without the loss.

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

    def draw_corruption(self, example_positions: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Draw time steps and noise, as a pure function of each example's position in the run: not of the process, nor of
        the micro-batch. Call it outside the (compiled) forward.

        Args:
            example_positions (`torch.LongTensor` of shape `(B,)`): Position of each example in the run.
            seed (`int`): Seed of the run.

        Returns:
            `timesteps`, a `torch.LongTensor` of shape `(B,)`, uniform over 0 .. T - 1, and `noise`, a
            `torch.FloatTensor` of shape `(B, num_patches, latent_dim)`, on the device of `example_positions`.
        """
        u = keyed_uniform(seed, TIMESTEPS, example_positions, 1)[:, 0]
        timesteps = (u * self.config.num_train_timesteps).long()
        return timesteps, draw_noise(self.config, example_positions, seed)

    def drop_labels(self, class_labels: torch.Tensor, example_positions: torch.Tensor, seed: int) -> torch.Tensor:
        """
        Replace a share `class_dropout_prob` of the labels by the null class, as a pure function of the positions.

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


@auto_docstring(
    custom_intro="""
    An l-DAE encoder with a linear classifier on the mean of its tokens. A trained probe is one, its BatchNorm folded.
    """
)
class LDAEForImageClassification(LDAEPreTrainedModel):
    def __init__(self, config: LDAEConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.ldae = LDAEModel(config)
        self.classifier = nn.Linear(config.hidden_size, self.num_labels)  # type: ignore[arg-type]
        self.post_init()

    @can_return_tuple
    @auto_docstring
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        timesteps: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        interpolate_pos_encoding: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        r"""
        timesteps (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
            Time step of each image; by default `config.feature_timestep` for all.
        noise (`torch.FloatTensor` of shape `(batch_size, num_patches, latent_dim)`, *optional*):
            The noise eps to corrupt the latents with at `timesteps`; by default the input stays clean.
        """
        outputs: BaseModelOutputWithPooling = self.ldae(
            pixel_values, timesteps, noise, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs
        )
        logits = self.classifier(outputs.pooler_output)  # (B, num_labels)
        loss = None if labels is None else self.loss_function(labels, logits, self.config, **kwargs)
        return ImageClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


@auto_docstring(custom_intro="An l-DAE encoder as a backbone of dense tasks: maps of the chosen blocks' features.")
class LDAEBackbone(BackboneMixin, LDAEPreTrainedModel):
    def __init__(self, config: LDAEConfig):
        super().__init__(config)
        self.ldae = LDAEModel(config)
        self.num_features = [config.hidden_size] * (config.num_hidden_layers + 1)
        self.post_init()

    @hidden_states_by_index
    @can_return_tuple
    @filter_output_hidden_states
    @auto_docstring
    def forward(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> BackboneOutput:
        r"""
        Returns:
            Feature maps of shape `(batch_size, hidden_size, height / patch_size, width / patch_size)`, one for each of
            `out_features`, for images of any size that is a multiple of the patch size.
        """
        kwargs["output_hidden_states"] = True
        outputs = self.ldae(pixel_values, interpolate_pos_encoding=True, **kwargs)
        grid = [side // self.config.patch_size for side in pixel_values.shape[2:]]
        maps = tuple(
            self.ldae.normalize(hidden).transpose(1, 2).unflatten(2, grid)  # (B, C, H / P, W / P)
            for stage, hidden in zip(self.stage_names, outputs.hidden_states, strict=True)
            if stage in self.out_features
        )
        return BackboneOutput(feature_maps=maps, hidden_states=outputs.hidden_states, attentions=outputs.attentions)


__all__ = [
    "LDAEBackbone",
    "LDAEForImageClassification",
    "LDAEForPreTraining",
    "LDAEForPreTrainingOutput",
    "LDAEModel",
    "LDAEPreTrainedModel",
]
