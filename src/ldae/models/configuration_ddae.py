"""Configuration of DDAE: the parts of a diffusion model, and the block and time step of its features."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .configuration_ldae import LDAEConfig
from .configuration_shared_ldae import DenoiserConfig
from .noise_ddae import DDPM, NOISE_PROCESSES, NoiseProcess


CHOICES: dict[str, tuple[str, ...]] = {
    "denoiser_type": ("UNet2DModel", "UNet2DConditionModel", "DiTTransformer2DModel", "LDAEModel"),
    "parametrization": ("ddpm", "edm"),
}

# The 35.7M UNet of the paper's CIFAR-10 runs: width 128, multipliers (1, 2, 2, 2), attention at 16 x 16, dropout 0.1.
PAPER_UNET: dict[str, Any] = {
    "sample_size": 32,
    "block_out_channels": [128, 256, 256, 256],
    "layers_per_block": 2,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": None,
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "dropout": 0.1,
}

# Defaults of the fields that describe each network's input.
DENOISERS: dict[str, dict[str, Any]] = {
    "UNet2DModel": {"in_channels": 3, "sample_size": None},
    "UNet2DConditionModel": {"in_channels": 4, "sample_size": None, "cross_attention_dim": 1280},
    "DiTTransformer2DModel": {"in_channels": 4, "sample_size": 32, "patch_size": 2, "num_embeds_ada_norm": 1000},
    "LDAEModel": {},
}

# UNet blocks that are a sequence of residual (and attention) blocks with at most one change of resolution at the end.
UNET_BLOCKS = frozenset(
    "DownBlock2D AttnDownBlock2D CrossAttnDownBlock2D ResnetDownsampleBlock2D SimpleCrossAttnDownBlock2D "
    "UNetMidBlock2D UNetMidBlock2DCrossAttn UNetMidBlock2DSimpleCrossAttn "
    "UpBlock2D AttnUpBlock2D CrossAttnUpBlock2D ResnetUpsampleBlock2D SimpleCrossAttnUpBlock2D".split()
)

# Conditions without an empty value.
UNSUPPORTED_CONDITIONS = ("class_embed_type", "encoder_hid_dim_type", "addition_embed_type", "time_cond_proj_dim")


@strict
class DDAEConfig(DenoiserConfig):
    r"""Configuration of [`DDAEModel`] and [`DDAEForImageClassification`].

    The defaults are the 35.7M UNet of the paper's DDPM runs on CIFAR-10 (Xiang et al. 2023, arXiv 2303.09769).
    [`DDAEModel.from_diffusers`] fills it in from a diffusion model. A field that is not declared here is refused.

    Args:
        denoiser_type (`str`, defaults to `"UNet2DModel"`): The network's class: `"UNet2DModel"`,
            `"UNet2DConditionModel"` or `"DiTTransformer2DModel"` of diffusers, or `"LDAEModel"`.
        denoiser_config (`dict`, *optional*): The fields of that class (of [`LDAEConfig`] for an `LDAEModel`); the
            others have the class's defaults. `None` is the paper's UNet, and requires `"UNet2DModel"`.
        vae_config (`dict`, *optional*): The fields of the `AutoencoderKL` in front of a latent network; `None` for a
            network of pixels.
        scheduler_config (`dict`, *optional*): The noise schedule. For DDPM the fields of diffusers' `DDPMScheduler`;
            the defaults are T = 1000 and beta linear from 1e-4 to 0.02. For EDM `sigma_data`, `p_mean`, `p_std`
            (training), `sigma_min`, `sigma_max`, `rho` and `num_steps` (sampling); the defaults are those of Karras et
            al. (2022) for CIFAR-10. Not for an `LDAEModel`, which has its own.
        parametrization (`str`, defaults to `"ddpm"`): The noise process: `"ddpm"`, or `"edm"` for a UNet or DiT of
            pixels that was trained with EDM's preconditioning. For EDM the time step t is the index of a level of its
            sampling schedule, counted from 0 at the clean end: `sigma_min` is t = 0.
        feature_layer (`str`, *optional*): The tap at which features are read, which is where the network ends: the
            name of a residual, attention or transformer block, such as `"up_blocks.1.resnets.2"` (see [`DDAEModel`]).
            `None` is the network's default: the 6th block of a UNet's up path, the 7th with `parametrization="edm"`,
            the middle block of a DiT. `"last"` is the last tap. The model fills in the name in its own copy of the
            configuration.
        feature_timestep (`int`, *optional*): The time step t, counted from 0, at which features are read. `None` is
            10 of 1000 for DDPM, 3 of EDM's 18 (sigma = 0.0599), 121 of 1000 for a DiT behind an autoencoder, or an
            l-DAE's own. The DDAE authors' public code counts from 1 and calls the first two 11 and 4.
        image_size (`int`, *optional*): Height and width of the images, in pixels; `None` is what the network was made
            for.
        num_channels (`int`, *optional*): Channels of the images; follows from the network or the autoencoder.
        hidden_size (`int`, *optional*): Width C of the features. The model fills it in, as it follows from
            `feature_layer`.
        null_class (`int`, *optional*): The class that stands for no class in a class-conditional network. For a DiT it
            is `num_embeds_ada_norm`; for a UNet it has to be given.
        empty_prompt_length (`int`, *optional*): Number of tokens of the empty prompt of a `UNet2DConditionModel`; its
            values are a buffer of the model.
        self_conditioning (`bool`, defaults to `False`): Add the pooled features of a middle layer to the time
            embedding of the later ones (DDAE++, Xiang et al. 2025); for a `UNet2DModel` or DiT that is trained here.
        self_conditioning_layer (`str`, *optional*): The tap of these features: the end of a UNet's middle block, or
            any block of a DiT but the last. The model fills in the default, for a DiT the middle block.
        augmentation_labels (`bool`, defaults to `False`): Condition the network on how each image was augmented, so
            that the images it generates are not (Karras et al. 2022, App. F.2); for a `UNet2DModel` or DiT that is
            trained here.
        out_features (`list[str]`, *optional*): The taps whose maps a [`DDAEBackbone`] returns, in any order. The
            default is the last tap of each resolution of a UNet's up path, as far as `feature_layer`, the finest
            first; for other networks `feature_layer`.

    Raises:
        ValueError: naming the field, its value and what is allowed.

    Example:
        >>> from ldae import DDAEConfig
        >>> config = DDAEConfig(feature_layer="up_blocks.1.resnets.2")
        >>> config.image_size, config.num_channels, config.feature_timestep
        (32, 3, 10)
    """

    model_type = "ddae"

    denoiser_type: str = "UNet2DModel"
    denoiser_config: dict[str, Any] | None = None
    vae_config: dict[str, Any] | None = None
    scheduler_config: dict[str, Any] | None = None
    parametrization: str = "ddpm"
    feature_layer: str | None = None
    feature_timestep: int | None = None
    image_size: int | None = None
    num_channels: int | None = None
    hidden_size: int | None = None
    null_class: int | None = None
    empty_prompt_length: int | None = None
    self_conditioning: bool = False
    self_conditioning_layer: str | None = None
    augmentation_labels: bool = False
    out_features: list[str] | None = None

    def fill_in(self, kwargs: dict[str, Any]) -> None:
        """Fill in the fields that follow from others."""
        self.require_choices(CHOICES)
        for name in ("denoiser_config", "vae_config", "scheduler_config"):
            setattr(self, name, _plain(getattr(self, name)))
        if self.denoiser_type == "LDAEModel":
            self._fill_in_ldae()
        else:
            self._fill_in_diffusers()

    def _fill_in_ldae(self) -> None:
        ldae = LDAEConfig(**(self.denoiser_config or {}))
        self.denoiser_config = ldae_fields(ldae)
        self.image_size = ldae.image_size if self.image_size is None else self.image_size
        self.num_channels = ldae.num_channels if self.num_channels is None else self.num_channels
        self.feature_timestep = ldae.feature_timestep if self.feature_timestep is None else self.feature_timestep

    def _fill_in_diffusers(self) -> None:
        if self.denoiser_config is None and self.denoiser_type == "UNet2DModel":
            self.denoiser_config = _plain(PAPER_UNET)
        if self.denoiser_config is None:
            raise ValueError(f"denoiser_config is missing; give the fields of {self.denoiser_type}.")
        self.scheduler_config = self.noise_process.complete(self.scheduler_config)
        if self.feature_timestep is None:
            latent_dit = self.denoiser_type == "DiTTransformer2DModel" and self.vae_config is not None
            self.feature_timestep = self.noise_process.default_feature_timestep(self.num_train_timesteps, latent_dit)
        if self.num_channels is None:
            if not isinstance(self.expected_channels, int):
                raise ValueError(f"in_channels={self.expected_channels!r} of the network must be an integer.")
            self.num_channels = self.expected_channels
        if self.image_size is None:
            side = self._of_denoiser("sample_size")
            if isinstance(side, list):
                side = side[0] if len(set(side)) == 1 else None
            if not isinstance(side, int):
                raise ValueError(
                    "image_size is missing, and does not follow from the network's "
                    f"sample_size={self._of_denoiser('sample_size')!r}; give image_size in pixels."
                )
            self.image_size = side * self.vae_stride
        if self.null_class is None and self.denoiser_type == "DiTTransformer2DModel":
            self.null_class = self._of_denoiser("num_embeds_ada_norm")
        if self.empty_prompt_length is None and self.denoiser_type == "UNet2DConditionModel":
            self.empty_prompt_length = 1

    @property
    def ldae_config(self) -> LDAEConfig:
        """The configuration of an `LDAEModel`, with all blocks in the encoder, so that each of them is a tap."""
        config = LDAEConfig(**(self.denoiser_config or {}))
        blocks = {"num_hidden_layers": config.total_num_hidden_layers, "decoder_num_hidden_layers": 0}
        return LDAEConfig(**ldae_fields(config) | blocks | {"feature_layer": None})

    @property
    def noise_process(self) -> type[NoiseProcess]:
        """The class of the noise process that `parametrization` names."""
        return NOISE_PROCESSES[self.parametrization]

    @property
    def num_train_timesteps(self) -> int:
        """T, the number of time steps; for EDM the number of levels of its sampling schedule."""
        if self.denoiser_type == "LDAEModel":
            return self.ldae_config.num_train_timesteps
        return self.noise_process.complete(self.scheduler_config)[self.noise_process.length_field]

    @property
    def search_timesteps(self) -> tuple[int, ...]:
        """Time steps to search for the best features: those of the noise process, and `feature_timestep`."""
        steps = self.num_train_timesteps
        searched = self.noise_process.search_timesteps(steps)
        return tuple(sorted({min(t, steps - 1) for t in searched} | {self.feature_timestep or 0}))

    @property
    def paper_point(self) -> tuple[str | None, int | None]:
        """The checkpoint's own tap and time step, because the paper searches for them."""
        return self.feature_layer, self.feature_timestep

    def reach_fields(self, layers: Sequence[Any] | None) -> dict[str, Any]:
        """Return the fields by which an encoder loads that reaches given taps: the network as far as it is saved."""
        return {"feature_layer": "last"}

    def cut_fields(self, layer: str) -> dict[str, Any]:
        """Return the fields by which an encoder loads that ends after a tap."""
        return {"feature_layer": layer}

    @property
    def num_class_embeds(self) -> None:
        """The number of classes to generate images of: none, as a DDAE is trained without labels."""
        return None

    @property
    def vae_stride(self) -> int:
        """Side in pixels of the cell that one value of the network's input covers."""
        return 1 if self.vae_config is None else 2 ** (len(self.vae_config.get("block_out_channels", [64])) - 1)

    @property
    def stride(self) -> int:
        """The number of pixels that the height and width of images must be multiples of."""
        if self.denoiser_type == "LDAEModel":
            return self.ldae_config.patch_size
        if self.denoiser_type == "DiTTransformer2DModel":
            return self.vae_stride * self._of_denoiser("patch_size")
        return self.vae_stride * 2 ** (len((self.denoiser_config or {}).get("block_out_channels", [0] * 4)) - 1)

    @property
    def prompt_size(self) -> int:
        """Width of a token of the prompt of a `UNet2DConditionModel`."""
        size = self._of_denoiser("cross_attention_dim")
        return size[0] if isinstance(size, list) else size

    @property
    def expected_channels(self) -> int:
        """Number of channels of the images that the network or its autoencoder takes."""
        if self.denoiser_type == "LDAEModel":
            return self.ldae_config.num_channels
        return self._of_denoiser("in_channels") if self.vae_config is None else self.vae_config.get("in_channels", 3)

    def _of_denoiser(self, name: str) -> Any:
        return (self.denoiser_config or {}).get(name, DENOISERS[self.denoiser_type].get(name))

    def check_fields(self) -> None:
        """Check the combination of fields.

        Raises:
            ValueError: naming the field, its value and what is allowed.
        """
        network, vae = self.denoiser_type, self.vae_config or {}
        inner_ldae, dit = network == "LDAEModel", network == "DiTTransformer2DModel"
        if dit:
            last_class = self._of_denoiser("num_embeds_ada_norm")  # its table has one row more than classes
        else:
            last_class = (self._of_denoiser("num_class_embeds") or 0) - 1
        of_pixels = self.vae_config is None and (dit or network == "UNet2DModel")
        t, size, last_t = self.feature_timestep, self.image_size, self.num_train_timesteps - 1

        no_vae = "None for an LDAEModel, which has a tokenizer"
        self.require("vae_config", not inner_ldae or self.vae_config is None, no_vae)
        only_pixels = "'ddpm', except for a UNet2DModel or DiTTransformer2DModel of pixels"
        self.require("parametrization", self.noise_process is DDPM or of_pixels, only_pixels)
        self.require("scheduler_config", not inner_ldae or self.scheduler_config is None, "None for an LDAEModel")
        in_channels = self._of_denoiser("in_channels")
        same_channels = f"one whose latent_channels are the network's in_channels={in_channels}"
        self.require("vae_config", not vae or vae.get("latent_channels", 4) == in_channels, same_channels)
        self.require(
            "vae_config",
            vae.get("latents_mean") is None and vae.get("latents_std") is None,
            "one without latents_mean and latents_std; only scaling_factor and shift_factor are supported",
        )
        in_schedule = f"from 0 to num_train_timesteps - 1 = {last_t}"
        self.require("feature_timestep", t is not None and 0 <= t <= last_t, in_schedule)
        multiple = f"a positive multiple of {self.stride}, the side of the network's coarsest cell in pixels"
        self.require("image_size", size is not None and size > 0 and size % self.stride == 0, multiple)
        channels = self.expected_channels
        taken = f"{channels}, as the network or its autoencoder takes"
        self.require("num_channels", self.num_channels == channels, taken)
        if last_class < 0:
            unconditional = "None for a network that is not class-conditional"
            self.require("null_class", self.null_class is None, unconditional)
        else:
            self.require(
                "null_class",
                self.null_class is not None and 0 <= self.null_class <= last_class,
                f"from 0 to {last_class}, the class that stands for no class in this class-conditional network",
            )
        if network == "UNet2DConditionModel":
            self.require("empty_prompt_length", (self.empty_prompt_length or 0) > 0, "positive")
        else:
            unprompted = "None for a network without a prompt"
            self.require("empty_prompt_length", self.empty_prompt_length is None, unprompted)
        if not (of_pixels and (dit or last_class < 0)):
            for name in ("self_conditioning", "augmentation_labels"):
                only = "False, except for a UNet or DiT of pixels, without classes"
                self.require(name, not getattr(self, name), only)
        if (self.denoiser_config or {}).get("mid_block_type", "") is None:
            self.require("self_conditioning", not self.self_conditioning, "False for a UNet without a middle block")
        if not self.self_conditioning:
            self.require(
                "self_conditioning_layer", self.self_conditioning_layer is None, "None without self_conditioning"
            )
        if network.startswith("UNet"):
            self._check_unet()

    def _check_unet(self) -> None:
        """Check the fields of a UNet itself."""
        unet = self.denoiser_config or {}
        for name in ("down_block_types", "up_block_types"):
            if not isinstance(unet.get(name, []), list | tuple):
                raise ValueError(f"denoiser_config.{name}={unet[name]!r} must be a list of types of blocks.")
        mid = unet.get("mid_block_type")
        blocks = [*unet.get("down_block_types", []), *unet.get("up_block_types", []), *([mid] if mid else [])]
        unknown = sorted(set(blocks) - UNET_BLOCKS)
        if unknown:
            raise ValueError(
                f"denoiser_config has unknown types of blocks, {', '.join(unknown)}; known are "
                f"{', '.join(sorted(UNET_BLOCKS))}."
            )
        if unet.get("time_embedding_type") == "fourier":
            raise ValueError("time_embedding_type='fourier' is not supported: such a network has no time steps.")
        for name in UNSUPPORTED_CONDITIONS:
            if unet.get(name) is not None:
                raise ValueError(f"{name}={unet[name]!r} is not supported: this condition has no empty value.")
        sizes = unet.get("cross_attention_dim")
        if isinstance(sizes, list) and len(set(sizes)) > 1:
            raise ValueError(f"cross_attention_dim={sizes} is invalid; the prompt has one width.")


def ldae_fields(config: LDAEConfig) -> dict[str, Any]:
    """Return the fields that LDAEConfig declares itself, which describe the network."""
    inherited = {field.name for field in fields(PreTrainedConfig)}
    names = [field.name for field in fields(LDAEConfig) if field.name not in inherited]
    return {name: getattr(config, name) for name in names if not name.startswith("_")}


def _plain(value: Any) -> Any:
    """Convert to JSON's types: tuples to lists, and without the names that diffusers adds, such as _class_name."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items() if not key.startswith("_")}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value


__all__ = ["DDAEConfig"]
