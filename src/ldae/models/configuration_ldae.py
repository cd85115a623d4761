"""Configuration of the l-DAE models: a field for each choice of the paper, and a check of their combinations."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers.activations import ACT2FN
from transformers.backbone_utils import BackboneConfigMixin

from .configuration_shared_ldae import DenoiserConfig


# name -> (hidden_size, num_hidden_layers, decoder_num_hidden_layers, num_attention_heads)
MODEL_SIZES: dict[str, tuple[int, int, int, int]] = {
    "nano": (128, 2, 2, 2),
    "tiny": (192, 12, 12, 3),
    "small": (384, 12, 12, 6),
    "base": (768, 12, 12, 12),
    "12L": (1024, 12, 12, 16),
    "large": (1024, 24, 24, 16),
}

CHOICES: dict[str, tuple[str, ...]] = {
    "latent_tokenizer": ("pca", "ae", "vae", "conv_vae", "pixel"),
    "latent_scaling": ("global", "per_dim", "none"),
    "noise_schedule": ("linear_beta", "linear_gamma2", "linear_sigma", "constant"),
    "prediction_target": ("noise", "latent", "projected_image", "image"),
    "input_space": ("latent", "image"),
    "loss_weighting": ("uniform", "gamma2", "inverse_variance"),
}

POSITIVE = (
    "image_size patch_size num_channels hidden_size num_hidden_layers num_attention_heads intermediate_size "
    "conditioning_size latent_dim num_train_timesteps layer_norm_eps sigma_max sigma"
).split()

# Defaults of conv_vae_config, fields of diffusers' AutoencoderKL: the autoencoder of latent diffusion at stride 8.
CONV_VAE_DEFAULTS: dict[str, Any] = {
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
    "norm_num_groups": 32,
    "act_fn": "silu",
    "mid_block_add_attention": True,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
}


@strict
class LDAEConfig(BackboneConfigMixin, DenoiserConfig):
    r"""Configuration of [`LDAEModel`], [`LDAEForPreTraining`], [`LDAEForImageClassification`] and [`LDAEBackbone`].

    The defaults are l-DAE itself, pre-trained on ImageNet 256x256 with a ViT-Base encoder (Chen et al. 2024,
    arXiv 2401.14404). Fields that are not declared here are refused, so that a misspelt one does not pass silently.

    Args:
        image_size (`int`, defaults to 256): Height and width of the training images, in pixels.
        patch_size (`int`, defaults to 16): Height and width P of a patch, in pixels.
        num_channels (`int`, defaults to 3): Channels C of the images. A patch has D = C * P * P values.
        hidden_size (`int`, defaults to 768): Width of the transformer.
        num_hidden_layers (`int`, defaults to 12): Blocks of the encoder, E. The encoder is the first E blocks of the
            stack of E + D; where to cut is a choice made after training (App. A).
        decoder_num_hidden_layers (`int`, defaults to 12): Blocks of the decoder, the rest of the stack.
        num_attention_heads (`int`, defaults to 12): Attention heads of a block.
        intermediate_size (`int`, defaults to 3072): Width of the blocks' MLP.
        hidden_act (`str`, defaults to `"gelu_pytorch_tanh"`): Activation of the blocks' MLP.
        layer_norm_eps (`float`, defaults to 1e-6): Epsilon of every LayerNorm; none of them has an affine part.
        qkv_bias (`bool`, defaults to `True`): Give the query, key and value projections a bias.
        initializer_range (`float`, defaults to 0.02): Standard deviation of the initial weights of the class
            embedding, if there is one. Linear maps start by Xavier at every width.
        conditioning_size (`int`, *optional*): Width of the conditioning MLP; `None` is a quarter of `hidden_size`
            (App. A; DiT has the whole).
        latent_tokenizer (`str`, defaults to `"pca"`): How patches become latents (Sec. 4.2): patch-wise `"pca"`,
            `"ae"` or `"vae"`, a convolutional `"conv_vae"` whose latent is cut into patches, or `"pixel"`, the patches
            of the image resized to fewer pixels (Fig. 5).
        latent_dim (`int`, defaults to 32): Dimension d of a patch's latent (Tab. 2). With `"conv_vae"` it follows from
            the network, latent_channels * (patch_size / stride)^2; with `"pixel"` it is num_channels * q^2 for a q
            that divides `patch_size`.
        conv_vae_config (`dict`, *optional*): The network of `"conv_vae"`: `block_out_channels` (a stride of 2 for each
            but the last), `layers_per_block`, `latent_channels`, `norm_num_groups` and other fields of diffusers'
            `AutoencoderKL`; the defaults are those of latent diffusion's autoencoder of stride 8.
        latent_scaling (`str`, defaults to `"global"`): Scale of the latents before noise is added: `"global"` (one
            scalar, mean variance over the d dimensions is 1), `"per_dim"` (each dimension to unit variance) or
            `"none"`. The paper does not specify it, but sigma is relative to the spread of the latents.
        noise_schedule (`str`, defaults to `"linear_sigma"`): `"linear_beta"` (DDPM), `"linear_gamma2"` (Sec. 4.1),
            `"linear_sigma"` (gamma = 1, sigma linear from 0 to `sigma_max`, Sec. 4.3) or `"constant"` (gamma = 1, the
            one level `sigma`).
        num_train_timesteps (`int`, defaults to 1000): Number T of time steps.
        beta_start (`float`, defaults to 1e-4): First beta of `"linear_beta"`.
        beta_end (`float`, defaults to 0.02): Last beta of `"linear_beta"`.
        sigma_max (`float`, defaults to sqrt(2)): Last sigma of `"linear_sigma"`.
        sigma (`float`, defaults to sqrt(1/3)): The one sigma of `"constant"`.
        prediction_target (`str`, defaults to `"image"`): `"noise"`, `"latent"`, `"projected_image"` (inverse PCA of
            the latent) or `"image"` (Sec. 4.3).
        input_space (`str`, defaults to `"image"`): The input of the blocks: the noisy `"latent"` or the noisy
            `"image"` (its inverse PCA).
        loss_weighting (`str`, defaults to `"inverse_variance"`): lambda_t of eq. 3: `"uniform"` (1), `"gamma2"`
            (gamma_t^2) or `"inverse_variance"` (1 / (1 + sigma_t^2)).
        residual_weight (`float`, defaults to 0.1): w_i of eq. 4 for the PCA dimensions beyond `latent_dim`.
        num_class_embeds (`int`, *optional*): Number of classes the denoiser is conditioned on; `None` for none, as in
            every row but the baseline.
        class_dropout_prob (`float`, defaults to 0.1): Share of labels replaced by the null class in training, if
            `num_class_embeds` is given.
        feature_timestep (`int`, defaults to 10): The t at which features are read (App. A).
        feature_layer (`int`, *optional*): The block, counted from 1, after which features are read; `None` is the last
            encoder block.
        project_clean_input (`bool`, defaults to `True`): Pass a clean input through the same projection to d
            dimensions as a noisy one in training.

    Raises:
        ValueError: naming the field, its value and what is allowed.

    Example:
        >>> from ldae import LDAEConfig
        >>> config = LDAEConfig.from_size("nano", image_size=32, patch_size=4, latent_dim=16)
        >>> config.hidden_size, config.num_patches, config.patch_dim, config.conditioning_size
        (128, 64, 48, 32)
    """

    model_type = "ldae"

    image_size: int = 256
    patch_size: int = 16
    num_channels: int = 3
    hidden_size: int = 768
    num_hidden_layers: int = 12
    decoder_num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float | int = 1e-6
    qkv_bias: bool = True
    initializer_range: float | int = 0.02
    conditioning_size: int | None = None
    latent_tokenizer: str = "pca"
    latent_dim: int = 32
    conv_vae_config: dict[str, Any] | None = None
    latent_scaling: str = "global"
    noise_schedule: str = "linear_sigma"
    num_train_timesteps: int = 1000
    beta_start: float | int = 1e-4
    beta_end: float | int = 0.02
    sigma_max: float | int = 2**0.5
    sigma: float | int = (1 / 3) ** 0.5
    prediction_target: str = "image"
    input_space: str = "image"
    loss_weighting: str = "inverse_variance"
    residual_weight: float | int = 0.1
    num_class_embeds: int | None = None
    class_dropout_prob: float | int = 0.1
    feature_timestep: int = 10
    feature_layer: int | None = None
    project_clean_input: bool = True
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def fill_in(self, kwargs: dict[str, Any]) -> None:
        """Fill in the fields that follow from others."""
        kwargs.pop("stage_names", None)  # derived from num_hidden_layers
        self.stage_names = ["stem"] + [f"stage{i}" for i in range(1, self.num_hidden_layers + 1)]
        self.set_output_features_output_indices(
            out_indices=kwargs.pop("out_indices", None), out_features=kwargs.pop("out_features", None)
        )
        if self.conditioning_size is None:
            self.conditioning_size = self.hidden_size // 4
        if self.latent_tokenizer == "conv_vae":
            given = {k: list(v) if isinstance(v, tuple) else v for k, v in (self.conv_vae_config or {}).items()}
            self.conv_vae_config = CONV_VAE_DEFAULTS | given

    @classmethod
    def from_size(cls, name: str, **fields: Any) -> "LDAEConfig":
        """Build the configuration of a named size (`nano`, `tiny`, `small`, `base`, `12L`, `large`).

        Args:
            name (`str`): One of `MODEL_SIZES`. `12L` and `large` are the paper's; the others keep its proportions.
            **fields: Other fields of the configuration, which override the size's.

        Returns:
            [`LDAEConfig`].

        Raises:
            ValueError: If the size is unknown.
        """
        if name not in MODEL_SIZES:
            raise ValueError(f"size={name!r} is unknown; choose one of {', '.join(MODEL_SIZES)}.")
        names = ("hidden_size", "num_hidden_layers", "decoder_num_hidden_layers", "num_attention_heads")
        chosen = dict(zip(names, MODEL_SIZES[name], strict=True)) | fields
        return cls(**{"intermediate_size": 4 * chosen["hidden_size"]} | chosen)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build a configuration as transformers does, but set overriding fields before the checks run.

        `num_hidden_layers` without `decoder_num_hidden_layers` re-cuts the encoder: the stack of encoder and decoder
        keeps its total number of blocks.
        """
        config_dict = dict(config_dict)
        if "num_hidden_layers" in kwargs and "num_hidden_layers" in config_dict:
            cut = kwargs["num_hidden_layers"]
            if "decoder_num_hidden_layers" not in kwargs:
                total = config_dict["num_hidden_layers"] + config_dict.get("decoder_num_hidden_layers", 12)
                if not 0 < cut <= total:
                    raise ValueError(
                        f"num_hidden_layers={cut} cuts a stack of {total} blocks; give a number from 1 to {total}."
                    )
                kwargs["decoder_num_hidden_layers"] = total - cut
            if config_dict.get("out_features") == [f"stage{config_dict['num_hidden_layers']}"]:
                config_dict.pop("out_features")  # the default, the last stage, follows the cut
                config_dict.pop("out_indices", None)
        return super().from_dict(config_dict, **kwargs)

    @property
    def patch_dim(self) -> int:
        """D = C * P * P, the number of values in a patch."""
        return self.num_channels * self.patch_size**2

    @property
    def num_patches(self) -> int:
        """N, the number of patches of a training image."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def total_num_hidden_layers(self) -> int:
        """E + D, the number of blocks of the whole denoiser."""
        return self.num_hidden_layers + self.decoder_num_hidden_layers

    @property
    def search_timesteps(self) -> tuple[int, ...]:
        """Time steps to search for the best features, over the whole schedule.

        At a small t the best denoiser is close to the identity, so features may be best at much noise.
        """
        return tuple(sorted({*self.scale_timesteps((0, 10, 20, 40, 80, 160, 320, 640, 1000)), self.feature_timestep}))

    def scale_timesteps(self, thousandths: Iterable[int]) -> tuple[int, ...]:
        """Scale time steps, given in thousandths of the schedule, to this model's number of steps, each once."""
        steps = self.num_train_timesteps
        return tuple(dict.fromkeys(min(t * steps // 1000, steps - 1) for t in thousandths))

    @property
    def paper_point(self) -> tuple[int, int]:
        """The paper's block and time step (App. A): the middle of the stack, at t = 10 of 1000."""
        return max(1, self.total_num_hidden_layers // 2), self.scale_timesteps((10,))[0]

    def reach_fields(self, layers: Sequence[Any] | None) -> dict[str, Any]:
        """Return the fields by which an encoder loads that reaches given blocks, by default all."""
        depth = self.total_num_hidden_layers
        blocks = range(1, depth + 1)
        if layers and not set(layers) <= set(blocks):
            raise ValueError(f"layers={','.join(map(str, layers))} do not exist; this model has blocks 1 to {depth}.")
        return self.cut_fields(max(layers or blocks))

    def cut_fields(self, layer: int) -> dict[str, Any]:
        """Return the fields by which an encoder loads that ends after a block."""
        return {"num_hidden_layers": layer, "feature_layer": None}

    @property
    def conv_vae_stride(self) -> int:
        """Side in pixels of the cell that one value of a convolutional VAE's latent map covers."""
        return 2 ** (len((self.conv_vae_config or CONV_VAE_DEFAULTS)["block_out_channels"]) - 1)

    @property
    def input_dim(self) -> int:
        """Size of a token that enters the blocks: d in latent space, D in image space."""
        return self.latent_dim if self.input_space == "latent" else self.patch_dim

    @property
    def output_dim(self) -> int:
        """Size of a predicted token: d for noise and latent, D for the two image targets."""
        return self.latent_dim if self.prediction_target in ("noise", "latent") else self.patch_dim

    def check_fields(self) -> None:
        """Check the combination of fields.

        Raises:
            ValueError: naming the field, its value and what is allowed.
        """
        self.require_choices(CHOICES | {"hidden_act": tuple(ACT2FN)})
        for name in POSITIVE:
            self.require(name, (getattr(self, name) or 0) > 0, "positive")
        self._check_conv_vae()
        heads, patch, steps = self.num_attention_heads, self.patch_size, self.num_train_timesteps
        self.require("image_size", self.image_size % patch == 0, f"a multiple of patch_size={patch}")
        self.require("hidden_size", self.hidden_size % heads == 0, f"a multiple of num_attention_heads={heads}")
        sincos = "a multiple of 4 (sine-cosine positions in two dimensions)"
        self.require("hidden_size", self.hidden_size % 4 == 0, sincos)
        self.require("decoder_num_hidden_layers", self.decoder_num_hidden_layers >= 0, "0 or more")
        largest = f"at most num_channels * patch_size^2 = {self.patch_dim}, the size of a patch"
        self.require("latent_dim", self.latent_dim <= self.patch_dim, largest)
        if self.latent_tokenizer == "pixel":
            q = math.isqrt(self.latent_dim // self.num_channels)
            self.require(
                "latent_dim",
                q > 0 and patch % q == 0 and self.latent_dim == self.num_channels * q**2,
                f"num_channels * q^2 for a q that divides patch_size={patch} with latent_tokenizer='pixel' (the side "
                "of a resized patch is q pixels)",
            )
        in_schedule = f"from 0 to num_train_timesteps - 1 = {steps - 1}"
        self.require("feature_timestep", 0 <= self.feature_timestep < steps, in_schedule)
        self.require(
            "feature_layer",
            self.feature_layer is None or 0 < self.feature_layer <= self.num_hidden_layers,
            f"None or from 1 to num_hidden_layers={self.num_hidden_layers} (which re-cuts the encoder)",
        )
        rising = 0 < self.beta_start <= self.beta_end < 1
        self.require("beta_start", rising, "such that 0 < beta_start <= beta_end < 1")
        self.require("residual_weight", 0 <= self.residual_weight <= 1, "between 0 and 1")
        self.require("class_dropout_prob", 0 <= self.class_dropout_prob < 1, "from 0 to below 1")
        self.require(
            "num_class_embeds", self.num_class_embeds is None or self.num_class_embeds > 0, "None or positive"
        )
        self.require(
            "loss_weighting",
            self.prediction_target != "noise" or self.loss_weighting == "uniform",
            "'uniform' with prediction_target='noise' (eq. 2; the other weights are for clean targets, eq. 3)",
        )
        if self.latent_tokenizer in ("ae", "vae") and self.prediction_target in ("projected_image", "image"):
            self.require(
                "residual_weight",
                self.residual_weight == 1,
                f"1 with latent_tokenizer={self.latent_tokenizer!r} and an image as target (the w_i of eq. 4 need the "
                "orthonormal basis of 'pca' or 'pixel')",
            )
        if self.input_space == "latent" or self.noise_schedule in ("linear_beta", "linear_gamma2"):
            self.require(
                "project_clean_input",
                self.project_clean_input,
                "True unless input_space='image' and gamma = 1 (noise_schedule 'linear_sigma' or 'constant'): a "
                "latent input is projected by definition, and a scaled one has no unprojected counterpart",
            )

    def _check_conv_vae(self) -> None:
        """Check the fields that a convolutional VAE restricts."""
        given = self.conv_vae_config
        if self.latent_tokenizer != "conv_vae":
            if given is not None:
                raise ValueError(
                    f"conv_vae_config={given!r} does not apply to latent_tokenizer={self.latent_tokenizer!r}; leave "
                    "it out, or choose 'conv_vae'."
                )
            return
        given = given or CONV_VAE_DEFAULTS
        unknown = sorted(set(given) - set(CONV_VAE_DEFAULTS))
        if unknown:
            raise ValueError(
                f"conv_vae_config has unknown fields, {', '.join(unknown)}; known are {', '.join(CONV_VAE_DEFAULTS)}."
            )
        stride = self.conv_vae_stride
        if self.patch_size % stride or self.image_size % stride:
            raise ValueError(
                f"conv_vae_config={given!r} has a stride of {stride} pixels (2 for each of block_out_channels but the "
                f"last), which must divide patch_size={self.patch_size}."
            )
        dim = given["latent_channels"] * (self.patch_size // stride) ** 2
        if self.latent_dim != dim:
            raise ValueError(
                f"latent_dim={self.latent_dim} is invalid with latent_tokenizer='conv_vae': a latent of "
                f"{given['latent_channels']} channels at stride {stride}, cut into patches of {self.patch_size} "
                f"pixels, has latent_dim={dim}. Give that, or choose another latent_tokenizer."
            )
        for name, only in (("input_space", ("latent",)), ("prediction_target", ("noise", "latent"))):
            if getattr(self, name) not in only:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} does not work with latent_tokenizer='conv_vae', whose decoder is "
                    f"not patch-wise; choose {' or '.join(only)}."
                )


__all__ = ["MODEL_SIZES", "LDAEConfig"]
