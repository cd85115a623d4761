"""The l-DAE models (Chen et al. 2024, arXiv 2401.14404): the encoder, and a classifier on it."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, auto_docstring, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_ldae import LDAEConfig
from .corruption_ldae import LDAECorruption
from .features_ldae import FeatureExtractionMixin, check_images
from .hidden_states_ldae import hidden_states_by_index, record_every
from .objective_ldae import LDAEObjective, loss_weight_table
from .tokenizer_conv_ldae import ConvVAETokenizer, build_tokenizer
from .tokenizer_ldae import PatchTokenizer, patchify
from .transformer_ldae import (
    LDAEAttention,
    LDAEConditioning,
    LDAEEmbeddings,
    LDAEHeadProjection,
    LDAELayer,
    LDAEModulation,
)


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
        check_images(pixel_values, self.config, self.config.patch_size, any_size)
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


__all__ = ["LDAEForImageClassification", "LDAEModel", "LDAEPreTrainedModel"]
