"""The DDAE models (Xiang et al. 2023, arXiv 2303.09769): the network of a diffusion model as an encoder of images."""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, auto_docstring, can_return_tuple

from .configuration_ddae import DDAEConfig
from .diffusers_ddae import AUGMENTATION_LABELS, SelfConditioning, build_network, diffusers_class, initialize
from .features_ldae import FeatureExtractionMixin, ImageClassificationMixin, tokens_of
from .networks_ddae import ADAPTERS, NetworkAdapter
from .sources_ddae import read_source
from .taps_ddae import block_ends, choose_tap, record
from .tokenizer_ldae import posterior_mean


@auto_docstring
class DDAEPreTrainedModel(PreTrainedModel):
    config: DDAEConfig
    base_model_prefix = "ddae"
    main_input_name = "pixel_values"
    input_modalities = ("image",)  # type: ignore[assignment]
    supports_gradient_checkpointing = True
    _no_split_modules = ["ResnetBlock2D", "BasicTransformerBlock", "LDAELayer"]
    _supports_sdpa = True
    _can_compile_fullgraph = True
    # A checkpoint may hold blocks after the tap, or a classifier; they are not loaded.
    _keys_to_ignore_on_load_unexpected = [
        r"^(ddae\.)?(denoiser|vae|self_conditioning|augmentation)\.",
        r"^classifier\.",
    ]

    def __init__(self, config: DDAEConfig, *args: Any, **kwargs: Any):
        super().__init__(copy.deepcopy(config), *args, **kwargs)  # the model fills in its own copy

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        r"""Load a checkpoint as transformers does; `feature_layer="..."` moves the tap towards the network's input.

        Raises:
            ValueError: If the checkpoint was cut before the tap, or trained without the conditioning asked for.
        """
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        model, info = loaded
        missing = sorted(key for key in info["missing_keys"] if not key.startswith("classifier."))
        if missing:
            _refuse_missing(missing, model.config.feature_layer)
        return (model, info) if output_loading_info else model

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialize as torch does, or by a module's own rule, and restore computed buffers."""
        initialize(module)
        if isinstance(module, DDAEModel) and module.empty_prompt is not None:
            init.zeros_(module.empty_prompt)


@auto_docstring(
    custom_intro="""
    The network of a diffusion model as an encoder (Sec. 3): it maps images to the activation of one block at one time
    step. The input is clean by default, so that features are deterministic.

    The block is `config.feature_layer`, named as in the network: `"down_blocks.i.resnets.j"`, `"mid_block.resnets.j"`
    and `"up_blocks.i.resnets.j"` in a UNet, with `attentions` in place of `resnets` for the attention that follows a
    residual block; `"transformer_blocks.i"` in a DiT; `"layers.i"` in an l-DAE. Later blocks are not built.
    [`DDAEModel.from_diffusers`] builds an encoder from a diffusion model.
    """
)
class DDAEModel(FeatureExtractionMixin, DDAEPreTrainedModel):
    pooling = "mean over space or tokens"
    paper_probe = {"crop": "padded", "epochs": 15, "batch_size": 128, "lr_multipliers": (20.0,)}  # Adam at 1e-3
    fixed_prefixes = ("vae.", "empty_prompt", "denoiser.tokenizer.")
    empty_prompt: torch.Tensor | None

    def __init__(self, config: DDAEConfig, whole: bool = False):
        r"""Build the network up to its tap.

        Args:
            whole (`bool`, defaults to `False`): Build the blocks after the tap too, for pre-training and sampling.
        """
        super().__init__(config)
        config = self.config
        self.stride = config.stride
        self.denoiser: Any = self.adapter.build(config)
        taps = self.adapter.taps(self.denoiser)
        config.feature_layer = choose_tap(taps, config.feature_layer, self.adapter.default_tap(config, taps))
        self._build_conditioning(taps, whole)
        if whole:
            self.adapter.set_initialization(self.denoiser)
        else:
            taps = taps[: taps.index(config.feature_layer) + 1]
            self.adapter.cut(self.denoiser, config.feature_layer)
        self.vae: Any = build_encoder(config) if config.vae_config else None
        self.corruption = self.adapter.build_noise_process(config)
        if config.empty_prompt_length is None:
            self.empty_prompt = None
        else:
            self.register_buffer("empty_prompt", torch.zeros(config.empty_prompt_length, config.prompt_size))
        self.whole = False  # the forward that finds the shapes must run through all taps
        self.feature_layers: dict[str, tuple[int, ...]] = self.adapter.shapes(self, taps)
        self.whole = whole
        config.hidden_size = self._width(self.feature_layers[config.feature_layer])
        self.post_init()

    def _build_conditioning(self, taps: Sequence[str], whole: bool) -> None:
        """Build self-conditioning and augmentation labels, unless the network is cut before they have an effect."""
        self.self_conditioning: SelfConditioning | None = None
        self.augmentation: nn.Linear | None = None
        c = self.config
        adapter: Any = self.adapter
        if c.self_conditioning:
            layer = c.self_conditioning_layer = adapter.conditioning_tap(c, taps)
            if whole or taps.index(layer) < taps.index(str(c.feature_layer)):
                self.self_conditioning = SelfConditioning(layer, *adapter.conditioning_widths(self.denoiser))
        if c.augmentation_labels and whole:
            width = adapter.conditioning_widths(self.denoiser)[1]
            self.augmentation = nn.Linear(AUGMENTATION_LABELS, width, bias=False)

    @property
    def adapter(self) -> NetworkAdapter:
        """The adapter around the network."""
        return ADAPTERS[self.config.denoiser_type]

    @classmethod
    def from_diffusers(
        cls,
        source: Any,
        feature_layer: str | None = None,
        feature_timestep: int | None = None,
        *,
        vae: Any = None,
        scheduler: Any = None,
        empty_prompt: torch.Tensor | None = None,
        null_class: int | None = None,
        image_size: int | None = None,
    ) -> "DDAEModel":
        r"""Build an encoder from a diffusion model. The source is read and copied, never changed.

        Args:
            source (`str`, `os.PathLike` or an object): A pipeline of diffusers (folder, Hub id or object), its network
                without the pipeline (folder or object: `UNet2DModel`, `UNet2DConditionModel` or
                `DiTTransformer2DModel`), or an l-DAE (folder, Hub id or object). A network's folder inside a
                pipeline's folder selects the pipeline.
            feature_layer (`str`, *optional*): The tap. The default is the 6th residual(+attention) block of a UNet's
                up path (the middle one if there are fewer), the middle block of a DiT (`"transformer_blocks.13"` of
                DiT-XL/2's 28), and an l-DAE's own. `"last"` is the last tap, which keeps all taps for
                [`~DDAEModel.features`].
            feature_timestep (`int`, *optional*): The time step, counted from 0. The default is 10 of 1000, 121 of 1000
                for a DiT behind an autoencoder, and an l-DAE's own. The public code reads that DiT at 121 on CIFAR-10
                and at 81 on Tiny-ImageNet.
            vae, scheduler: For a network without a pipeline: the `AutoencoderKL` in front of it, and the scheduler of
                diffusers that adds noise (DDPM's by default).
            empty_prompt (`torch.Tensor` of shape `(L, D)`, *optional*): For a `UNet2DConditionModel`: the empty text,
                as its text encoder encodes it. A pipeline with a text encoder computes it; without either it is zeros,
                with a warning.
            null_class (`int`, *optional*): For a class-conditional UNet: the class that stands for no class.
            image_size (`int`, *optional*): Side of the images in pixels; by default what the network was made for.

        Returns:
            [`DDAEModel`] in evaluation mode, on the network's device and in its dtype.

        Raises:
            ValueError: If the source is none of these, or has conditions without an empty value.

        Example:
            >>> from diffusers import UNet2DModel
            >>> from ldae import DDAEModel
            >>> small = {"sample_size": 16, "block_out_channels": (8, 16), "norm_num_groups": 4, "layers_per_block": 1}
            >>> blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
            >>> model = DDAEModel.from_diffusers(UNet2DModel(**small, **blocks))
            >>> model.config.feature_layer, model.feature_layers[model.config.feature_layer]
            ('up_blocks.0.resnets.1', (16, 8, 8))
        """
        parts = read_source(source, vae=vae, scheduler=scheduler, empty_prompt=empty_prompt)
        config = DDAEConfig(
            **parts.config_fields(),
            feature_layer=feature_layer,
            feature_timestep=feature_timestep,
            null_class=null_class,
            image_size=image_size,
        )
        with init.no_init_weights():
            model = cls(config)
        reference = next(parts.denoiser.parameters())
        model.to(reference.device, reference.dtype)
        given, own = parts.state_dict(), model.state_dict()
        missing = sorted(own.keys() - given.keys())
        if missing:
            raise ValueError(
                f"the network lacks {missing[0]} and {len(missing) - 1} more of the tensors in its configuration; "
                "fuse and unload adapters (LoRA) first."
            )
        model.load_state_dict({name: given[name] for name in own})
        return model.eval()

    @can_return_tuple
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
            noise (`torch.FloatTensor` of the shape that [`~DDAEModel.encode`] returns, *optional*): The noise eps: the
                network sees x_t = gamma_t x_0 + sigma_t eps, with gamma_t^2 + sigma_t^2 = 1, as in the paper. By
                default eps = 0, the clean input at the scale of t. For an l-DAE it is `(B, N, d)`.

        Returns:
            `last_hidden_state`: the raw activation as tokens `(B, N, C)`, a map `(B, C, H, W)` row by row (for an
            l-DAE normalised, as its own features are); `pooler_output`: their mean `(B, C)`, the paper's global mean
            pooling.

        Example:
            >>> import torch
            >>> from ldae import DDAEConfig, DDAEModel
            >>> unet = {"sample_size": 16, "block_out_channels": [8, 16], "norm_num_groups": 4, "layers_per_block": 1}
            >>> unet |= {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
            >>> outputs = DDAEModel(DDAEConfig(denoiser_config=unet)).eval()(torch.zeros(2, 3, 16, 16))
            >>> outputs.last_hidden_state.shape, outputs.pooler_output.shape
            (torch.Size([2, 64, 16]), torch.Size([2, 16]))
        """
        self.check_images(pixel_values, interpolate_pos_encoding)
        if timesteps is None:
            timesteps = self.shared_timestep(pixel_values)
        x0 = self.encode(pixel_values)
        if self.whole:
            tap = str(self.config.feature_layer)
            found = record(self.denoiser, [tap], lambda: self.adapter.run(self, x0, timesteps, noise), self._read)
            activation = found[tap]
        else:
            activation = self.adapter.run(self, x0, timesteps, noise)
        tokens = tokens_of(activation)  # (B, N, C)
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=tokens.mean(dim=1))

    @property
    def default_layer(self) -> str:
        """The tap that features are read at by default."""
        return str(self.config.feature_layer)

    @property
    def search_layers(self) -> list[str]:
        """One tap for each block of the paper's, and the default one."""
        ends = block_ends(list(self.feature_layers))
        return [tap for tap in self.feature_layers if tap in ends or tap == self.default_layer]

    @property
    def build_options(self) -> dict[str, Any]:
        """Arguments that build a model of the same size."""
        return {"whole": self.whole}

    def activations(
        self,
        clean: torch.Tensor,
        layers: Sequence[str],
        timesteps: torch.Tensor,
        noise: torch.Tensor | None,
        read: Callable[[torch.Tensor], torch.Tensor],
        size: tuple[int, int],
    ) -> dict[str, torch.Tensor]:
        """Run the network up to the last of the taps and read each one's raw activation."""
        run = partial(self.adapter.run, self, clean, timesteps, noise)
        return record(self.denoiser, layers, run, lambda activation: read(self._read(activation)))

    def noise_shape(self, pixel_values: torch.Tensor) -> tuple[int, ...]:
        """Return the shape of one image's noise: that of the network's input."""
        return self.adapter.noise_shape(self, pixel_values)

    def encode(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Encode images `(B, C, H, W)` as the network's clean input x_0.

        It is the images themselves, or the scaled posterior mean `(B, c, h, w)` of a frozen autoencoder.
        """
        if self.vae is None:
            return pixel_values
        with torch.no_grad():
            z = posterior_mean(self.vae, pixel_values)
        fields = self.vae.config
        return (z - (fields.shift_factor or 0)) * fields.scaling_factor

    def _read(self, activation: torch.Tensor) -> torch.Tensor:
        return self.adapter.read(self.denoiser, activation)

    @staticmethod
    def _width(shape: tuple[int, ...]) -> int:
        return shape[0] if len(shape) == 3 else shape[-1]  # of a map (C, H, W), or of tokens (N, C)


@auto_docstring(
    custom_intro="""
    A DDAE encoder with a linear classifier on the mean of its features. A trained probe is one, its BatchNorm folded.
    """
)
class DDAEForImageClassification(ImageClassificationMixin, DDAEPreTrainedModel):
    def __init__(self, config: DDAEConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.ddae = DDAEModel(config)
        self.config = self.ddae.config  # with the tap and its width filled in
        self.classifier = nn.Linear(self.config.hidden_size, self.num_labels)  # type: ignore[arg-type]
        self.post_init()


def build_encoder(config: DDAEConfig) -> Any:
    """Build the frozen encoder of an `AutoencoderKL`, without initial weights."""
    vae: Any = build_network(diffusers_class("AutoencoderKL"), config.vae_config or {}, "vae_config")
    vae.decoder = vae.post_quant_conv = None
    return vae.requires_grad_(False)


def _refuse_missing(missing: list[str], feature_layer: str) -> None:
    """Explain why a checkpoint lacks tensors of the model that is loaded from it."""
    for prefix, field in (("self_conditioning.", "self_conditioning"), ("augmentation.", "augmentation_labels")):
        if any(prefix in name for name in missing):
            raise ValueError(f"{field}=True does not fit this checkpoint, which was trained without; leave it out.")
    raise ValueError(
        f"feature_layer={feature_layer!r} does not exist in this checkpoint, which lacks {len(missing)} tensors of "
        f"the network, such as {missing[0]}. It was cut at an earlier block: make it again with "
        "DDAEModel.from_diffusers."
    )


__all__ = ["DDAEForImageClassification", "DDAEModel", "DDAEPreTrainedModel"]
