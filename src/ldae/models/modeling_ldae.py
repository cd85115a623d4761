"""The l-DAE models (Chen et al. 2024, arXiv 2401.14404): the encoder, and a classifier on it."""

from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import wraps
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.modeling_outputs import BackboneOutput, BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, auto_docstring, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .configuration_ldae import LDAEConfig
from .corruption_ldae import LDAECorruption
from .features_ldae import FeatureExtractionMixin, ImageClassificationMixin
from .tokenizer_ldae import Float32Buffers, build_tokenizer, patchify
from .transformer_ldae import (
    LDAEAttention,
    LDAEConditioning,
    LDAEEmbeddings,
    LDAEHeadProjection,
    LDAELayer,
    LDAEModulation,
)


# Up to 5.22, transformers' lists of hidden states left the embeddings out of the count.
COUNTS_EMBEDDINGS = "num_hidden_layers_key" in {field.name for field in fields(OutputRecorder)}
# Blocks are numbered through encoder and decoder.
NUMBERED_THROUGH: Any = {"num_hidden_layers_key": "total_num_hidden_layers"} if COUNTS_EMBEDDINGS else {}


def hidden_states_by_index(forward: Callable) -> Callable:
    """Let `output_hidden_states` be an index or a list of them, under every version of transformers.

    Indices count in the full tuple: 0 is the embeddings, -1 the last block. The other hidden states are `None`, and an
    index out of range raises a `ValueError`.
    """

    @wraps(forward)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        wanted = kwargs.get("output_hidden_states")
        if wanted is None or isinstance(wanted, bool):
            return forward(self, *args, **kwargs)
        wanted = [wanted] if isinstance(wanted, int) else list(wanted)
        count = len(self.base_model.layers) + 1
        if not all(-count <= index < count for index in wanted):
            raise ValueError(
                f"output_hidden_states={wanted} is out of range; there are {count} hidden states, 0 to {count - 1}."
            )
        wanted = sorted({index % count for index in wanted})
        if COUNTS_EMBEDDINGS:
            return forward(self, *args, **kwargs | {"output_hidden_states": wanted})
        outputs = forward(self, *args, **kwargs | {"output_hidden_states": True, "return_dict": True})
        outputs["hidden_states"] = tuple(h if i in wanted else None for i, h in enumerate(outputs.hidden_states))
        return outputs if kwargs.get("return_dict", self.config.return_dict) else outputs.to_tuple()

    return wrapper


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
    _can_record_outputs = {
        "hidden_states": OutputRecorder(LDAELayer, **NUMBERED_THROUGH),
        "attentions": LDAEAttention,
    }
    _input_embed_layer = "projection"
    # An encoder loads from a whole denoiser: the decoder's blocks and its head stay behind.
    _keys_to_ignore_on_load_unexpected = [r"^(ldae\.)?layers\.\d+\.", r"^(head|classifier)\."]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialize like DiT, but the time MLP by Xavier too: Xavier linear maps, zero gates and head.

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
        elif isinstance(module, Float32Buffers):
            for name, value in module.initial_buffers().items():
                init.copy_(getattr(module, name), value)


@auto_docstring(
    custom_intro="The l-DAE encoder: images in, features out, by default of a clean input at one time step."
)
class LDAEModel(FeatureExtractionMixin, LDAEPreTrainedModel):
    pooling = "mean of tokens, LayerNorm without affine"
    paper_probe = {"crop": "resized"}  # App. A, as in MAE
    fixed_prefixes = ("tokenizer.",)

    def __init__(self, config: LDAEConfig, num_layers: int | None = None):
        r"""Build the encoder.

        Args:
            num_layers (`int`, *optional*): How many blocks to build; defaults to the encoder's,
                `config.num_hidden_layers`.
        """
        super().__init__(config)
        self.stride = config.patch_size
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
        r"""Compute the features of images.

        Args:
            timesteps (`torch.LongTensor` of shape `(batch_size,)`, *optional*): Time step of each image; by default
                `config.feature_timestep` for all.
            noise (`torch.FloatTensor` of shape `(batch_size, num_patches, latent_dim)`, *optional*): The noise eps to
                corrupt the latents with at `timesteps`; by default the input stays clean.

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
        self.check_images(pixel_values, interpolate_pos_encoding)
        if timesteps is None:
            timesteps = self.shared_timestep(pixel_values)
        clean = self.prepare_input(pixel_values, noise)
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

    def prepare_input(self, pixel_values: torch.Tensor, noise: torch.Tensor | None) -> torch.Tensor:
        """Encode images `(B, C, H, W)` as clean latents `(B, N, d)`.

        Where no noise is added and `config.project_clean_input` is false, it is their patches `(B, N, D)`.
        """
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
        """Normalize hidden states `(B, N, C)` to features by a LayerNorm without affine parameters.

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
class LDAEForImageClassification(ImageClassificationMixin, LDAEPreTrainedModel):
    def __init__(self, config: LDAEConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.ldae = LDAEModel(config)
        self.classifier = nn.Linear(config.hidden_size, self.num_labels)  # type: ignore[arg-type]
        self.post_init()


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
        r"""Compute maps of features.

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


__all__ = ["LDAEBackbone", "LDAEForImageClassification", "LDAEModel", "LDAEPreTrainedModel"]
