"""The convolutional VAE in front of a latent denoiser (Sec. 4.1), and the construction of every latent tokenizer."""

from typing import Any

import torch

from .configuration_ldae import LDAEConfig
from .tokenizer_ldae import (
    Float32Buffers,
    PatchAutoencoder,
    PatchPCA,
    PatchPixels,
    PatchTokenizer,
    divide,
    latent_std,
    patchify,
    unpatchify,
)


class ConvVAETokenizer(Float32Buffers):
    """A tokenizer around diffusers' `AutoencoderKL`, whose latents are cut into patches as in DiT.

    Its weights are frozen; `ldae train_tokenizer` trains them. A latent is the posterior's mean.

    Args:
        config ([`LDAEConfig`]): With `conv_vae_config`.

    Buffers (float32): `mean (d,)` and `explained_variance (d,)` of latents before scaling, `fitted ()`.

    Raises:
        ValueError: If diffusers is not installed.
    """

    mean: torch.Tensor
    explained_variance: torch.Tensor
    fitted: torch.Tensor

    def __init__(self, config: LDAEConfig):
        super().__init__()
        self.latent_dim, self.latent_scaling = config.latent_dim, config.latent_scaling
        self.patch_size, self.num_channels = config.patch_size, config.num_channels
        self.conv_vae_config = config.conv_vae_config
        self.latent_patch_size = config.patch_size // config.conv_vae_stride
        self.stride = config.conv_vae_stride
        self.vae: Any = build_conv_vae(config).requires_grad_(False)
        for name, value in self.unfitted_state().items():
            self.register_buffer(name, value)

    def unfitted_state(self) -> dict[str, torch.Tensor]:
        """Return the buffers before a fit: zero mean, unit variances."""
        return {
            "mean": torch.zeros(self.latent_dim, device="cpu"),
            "explained_variance": torch.ones(self.latent_dim, device="cpu"),
            "fitted": torch.tensor(False, device="cpu"),
        }

    @property
    def std(self) -> torch.Tensor:
        """The standard deviation that latents are divided by; broadcasts over the d dimensions."""
        return latent_std(self.explained_variance, self.latent_scaling)

    @torch.no_grad()
    def encode_images(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Encode images `(B, C, H, W)` as scaled latents `(B, N, d)`, without gradients."""
        z = self.unscaled_latents(pixel_values)  # (B, N, d)
        return divide(z - self.mean, self.std)

    def unscaled_latents(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Encode images `(B, C, H, W)` as the posterior's mean in patches `(B, N, d)`."""
        return patchify(posterior_mean(self.vae, pixel_values), self.latent_patch_size).to(self.mean.dtype)

    def decode_images(self, latents: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Decode scaled latents `(B, N, d)` to images `(B, C, height, width)`."""
        z = latents.to(self.mean.dtype) * self.std + self.mean
        z = unpatchify(z, self.latent_patch_size, height // self.stride, width // self.stride)  # (B, c, h, w)
        z = z.to(next(self.vae.parameters()).dtype)
        z = z if self.vae.post_quant_conv is None else self.vae.post_quant_conv(z)
        return self.vae.decoder(z).to(self.mean.dtype)


def posterior_mean(vae: Any, pixel_values: torch.Tensor) -> torch.Tensor:
    """Encode images `(B, C, H, W)` as the posterior's mean of an `AutoencoderKL`, `(B, c, h, w)`, in its dtype."""
    x = vae.encoder(pixel_values.to(next(vae.parameters()).dtype))  # (B, 2c, h, w)
    moments = x if vae.quant_conv is None else vae.quant_conv(x)
    return moments.chunk(2, dim=1)[0]


def build_conv_vae(config: LDAEConfig) -> Any:
    """Build the untrained `AutoencoderKL` of a configuration's `conv_vae_config`.

    Raises:
        ValueError: If diffusers is not installed.
    """
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise ValueError(
            "latent_tokenizer='conv_vae' needs diffusers for its AutoencoderKL; pip install diffusers."
        ) from error
    fields: dict[str, Any] = dict(config.conv_vae_config or {})
    levels = len(fields["block_out_channels"])
    return AutoencoderKL(
        in_channels=config.num_channels,
        out_channels=config.num_channels,
        sample_size=config.image_size,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        **fields,
    )


PATCH_TOKENIZERS: dict[str, type[PatchTokenizer]] = {
    "pca": PatchPCA,
    "ae": PatchAutoencoder,
    "vae": PatchAutoencoder,
    "pixel": PatchPixels,
}


def build_tokenizer(config: LDAEConfig) -> PatchTokenizer | ConvVAETokenizer:
    """Build the latent tokenizer of a configuration, unfitted."""
    if config.latent_tokenizer == "conv_vae":
        return ConvVAETokenizer(config)
    tokenizer_class = PATCH_TOKENIZERS[config.latent_tokenizer]
    return tokenizer_class(config.patch_size, config.num_channels, config.latent_dim, config.latent_scaling)
