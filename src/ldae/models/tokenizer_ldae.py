"""Latent tokenizers: linear maps of patches to latents of dimension d and back, or a convolutional VAE (Sec. 4)."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .configuration_ldae import LDAEConfig


def patchify(pixel_values: torch.Tensor, patch_size: int) -> torch.Tensor:
    """Cut images into flattened patches, row by row, each in a convolution's order (channel, row, column).

    Args:
        pixel_values (`torch.Tensor` of shape `(B, C, H, W)`): H and W are multiples of `patch_size`.
        patch_size (`int`): P, in pixels.

    Returns:
        `torch.Tensor` of shape `(B, N, D)` with N = (H / P) * (W / P) and D = C * P * P.
    """
    b, c, height, width = pixel_values.shape
    p = patch_size
    x = pixel_values.reshape(b, c, height // p, p, width // p, p).permute(0, 2, 4, 1, 3, 5)
    return x.reshape(b, (height // p) * (width // p), c * p * p)


def unpatchify(patches: torch.Tensor, patch_size: int, height: int, width: int) -> torch.Tensor:
    """Invert [`patchify`]: turn patches `(B, N, D)` into images `(B, C, height, width)`."""
    b, p = patches.shape[0], patch_size
    x = patches.reshape(b, height // p, width // p, -1, p, p).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(b, -1, height, width)


def cosine_basis(patch_size: int, num_channels: int, latent_dim: int) -> torch.Tensor:
    """Compute the d lowest frequencies of the orthonormal two-dimensional cosine basis of a patch, grey before colour.

    They resemble the principal components of natural patches, and stand in for them before a fit.

    Returns:
        `torch.FloatTensor` of shape `(d, D)` with orthonormal rows.
    """
    # The device is named because from_pretrained builds models with "meta" as default.
    index = torch.arange(patch_size, dtype=torch.float64, device="cpu")
    waves = torch.cos(math.pi / patch_size * torch.outer(index, index + 0.5)) * math.sqrt(2 / patch_size)
    waves[0] /= math.sqrt(2)  # (P, P): frequency, pixel
    index_c = torch.arange(num_channels, dtype=torch.float64, device="cpu")
    colours = torch.cos(math.pi / num_channels * torch.outer(index_c, index_c + 0.5)) * math.sqrt(2 / num_channels)
    colours[0] /= math.sqrt(2)  # (C, C): the first is the mean of the channels
    basis = torch.einsum("ac,ux,vy->auvcxy", colours, waves, waves).reshape(-1, num_channels * patch_size**2)
    p = patch_size
    order = sorted(range(len(basis)), key=lambda i: (i // p % p + i % p + 3 * (i // (p * p)), i))
    return basis[order[:latent_dim]].float()


def pooling_basis(patch_size: int, num_channels: int, latent_dim: int) -> torch.Tensor:
    """Compute the basis of means over the cells of a q x q grid on a patch, for d = C * q * q.

    Its coordinates are the pixels of the patch in the image resized by area to q / P of its side (Fig. 5).

    Returns:
        `torch.FloatTensor` of shape `(d, D)` with orthonormal rows.
    """
    q = math.isqrt(latent_dim // num_channels)
    cell = patch_size // q
    pixel = torch.arange(patch_size, device="cpu") // cell  # (P,): the cell that a row or a column belongs to
    axis = (pixel[None] == torch.arange(q, device="cpu")[:, None]).double() / math.sqrt(cell)  # (q, P)
    channels = torch.eye(num_channels, dtype=torch.float64, device="cpu")
    basis = torch.einsum("ac,ux,vy->auvcxy", channels, axis, axis)
    return basis.reshape(latent_dim, num_channels * patch_size**2).float()


class Float32Buffers(nn.Module):
    """A module that computes its buffers, and keeps them in float32: `model.to(torch.bfloat16)` leaves them so."""

    def initial_buffers(self) -> dict[str, torch.Tensor]:
        """Compute the buffers, on the CPU. from_pretrained builds models without values, and asks for them again."""
        raise NotImplementedError

    def register_buffers(self, persistent: bool) -> None:
        """Register the initial buffers; `persistent` ones are saved."""
        for name, value in self.initial_buffers().items():
            self.register_buffer(name, value, persistent)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "Float32Buffers":
        before = dict(self._buffers)
        super()._apply(fn, recurse)
        for name, buffer in before.items():
            after = self._buffers[name]
            if buffer is not None and after is not None and after.element_size() < buffer.element_size():
                self._buffers[name] = buffer.to(after.device)
        return self


class LatentTokenizer(Float32Buffers):
    """A tokenizer whose latents are scaled by their measured variance."""

    mean: torch.Tensor
    explained_variance: torch.Tensor  # (d,)
    fitted: torch.Tensor
    latent_scaling: str

    @property
    def std(self) -> torch.Tensor:
        """Divisor of the latents: one number `(1,)`, or one for each dimension `(d,)`."""
        variance = self.explained_variance.clamp(min=0)
        if self.latent_scaling == "global":
            return variance.mean(dim=0, keepdim=True).sqrt()
        if self.latent_scaling == "per_dim":
            return variance.sqrt()
        return torch.ones_like(variance[:1])


class PatchTokenizer(LatentTokenizer):
    """A tokenizer of a linear map V of centred patches, and a linear map back, U^T; U = V if its rows are orthonormal.

    Args:
        patch_size (`int`): P, in pixels.
        num_channels (`int`): C. A patch has D = C * P * P values.
        latent_dim (`int`): d.
        latent_scaling (`str`, defaults to `"none"`): `"global"` divides latents by one scalar so that their mean
            variance over the d dimensions is 1, `"per_dim"` by each dimension's own (a dimension without variance
            stays zero), `"none"` leaves them.

    Buffers (float32): `mean (D,)` of patches, `components (d, D)`, the rows of V, `explained_variance (d,)` of each
    latent dimension before scaling, `fitted ()`.
    """

    components: torch.Tensor

    def __init__(self, patch_size: int, num_channels: int, latent_dim: int, latent_scaling: str = "none"):
        super().__init__()
        patch_dim = num_channels * patch_size**2
        if not 0 < latent_dim <= patch_dim:
            raise ValueError(
                f"latent_dim={latent_dim} is invalid; a patch has {patch_dim} values, so give 1 to {patch_dim}."
            )
        self.patch_size, self.num_channels = patch_size, num_channels
        self.latent_dim, self.latent_scaling = latent_dim, latent_scaling
        self.register_buffers(persistent=True)

    def basis(self) -> torch.Tensor:
        """Return V before a fit: `(d, D)` with orthonormal rows."""
        return cosine_basis(self.patch_size, self.num_channels, self.latent_dim)

    def initial_buffers(self) -> dict[str, torch.Tensor]:
        """Return the buffers before a fit: the basis, zero mean, unit variances."""
        return {
            "mean": torch.zeros(self.num_channels * self.patch_size**2, device="cpu"),
            "components": self.basis(),
            "explained_variance": torch.ones(self.latent_dim, device="cpu"),
            "fitted": torch.tensor(False, device="cpu"),
        }

    @property
    def decoder_components(self) -> torch.Tensor:
        """The rows of U `(d, D)`."""
        return self.components

    def encode(self, patches: torch.Tensor) -> torch.Tensor:
        """Encode patches `(..., D)` as scaled latents `(..., d)`, in the buffers' precision."""
        z = (patches.to(self.mean.dtype) - self.mean) @ self.components.T  # (..., d)
        return divide(z, self.std)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode scaled latents `(..., d)` to patches `(..., D)`: the inverse PCA of Fig. 1."""
        return (latents.to(self.mean.dtype) * self.std) @ self.decoder_components + self.mean  # (..., D)

    def encode_images(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Encode images `(B, C, H, W)` as scaled latents `(B, N, d)`."""
        return self.encode(patchify(pixel_values, self.patch_size))

    def decode_images(self, latents: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """Decode scaled latents `(B, N, d)` to images `(B, C, height, width)`."""
        return unpatchify(self.decode(latents), self.patch_size, height, width)


class PatchPCA(PatchTokenizer):
    """A patch-wise PCA (Sec. 4.2): `encode` is x -> V (x - mean) with orthonormal rows, `decode` its transpose.

    Unfitted it holds the low frequencies of the cosine basis and `fitted` is False; [`~ldae.fit_patch_pca`] fits it.
    The rows of `components` are sorted by falling variance.

    Example:
        >>> import torch
        >>> from ldae import PatchPCA
        >>> pca = PatchPCA(patch_size=4, num_channels=3, latent_dim=16)
        >>> latents = pca.encode(torch.zeros(2, 64, 48))
        >>> latents.shape, pca.decode(latents).shape
        (torch.Size([2, 64, 16]), torch.Size([2, 64, 48]))
    """

    def project(self, patches: torch.Tensor) -> torch.Tensor:
        """Compute V x, the d leading PCA coordinates of a difference of patches `(..., D)` (eq. 4)."""
        return patches @ self.components.T  # (..., d)


class PatchPixels(PatchPCA):
    """The pixel "tokenizer", whose latents are the patches of the image resized to q / P of its side (Fig. 5).

    d = C * q * q. V pools over cells and is not fitted; a fit only measures mean and variances.
    """

    def basis(self) -> torch.Tensor:
        return pooling_basis(self.patch_size, self.num_channels, self.latent_dim)


class PatchAutoencoder(PatchTokenizer):
    """A patch-wise AE or VAE, whose V and U are trained by gradient (Sec. 4.2). A VAE encodes the posterior's mean.

    Buffers: those of [`PatchTokenizer`] and `decoder_weight (d, D)`, the rows of U.
    """

    decoder_weight: torch.Tensor

    def initial_buffers(self) -> dict[str, torch.Tensor]:
        return {**super().initial_buffers(), "decoder_weight": self.basis()}

    @property
    def decoder_components(self) -> torch.Tensor:
        return self.decoder_weight


def divide(latents: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """Divide latents `(..., d)` by their standard deviation; return zero where that is only rounding."""
    return latents * torch.where(std > 1e-4 * std.amax(dim=0), 1 / std, 0)


class ConvVAETokenizer(LatentTokenizer):
    """A tokenizer around diffusers' `AutoencoderKL`, whose latents are cut into patches as in DiT.

    Its weights are frozen; `ldae train_tokenizer` trains them. A latent is the posterior's mean.

    Args:
        config ([`LDAEConfig`]): With `conv_vae_config`.

    Buffers (float32): `mean (d,)` and `explained_variance (d,)` of latents before scaling, `fitted ()`.
    """

    def __init__(self, config: LDAEConfig):
        super().__init__()
        self.latent_dim, self.latent_scaling = config.latent_dim, config.latent_scaling
        self.patch_size, self.num_channels = config.patch_size, config.num_channels
        self.conv_vae_config = config.conv_vae_config
        self.latent_patch_size = config.patch_size // config.conv_vae_stride
        self.stride = config.conv_vae_stride
        self.vae: Any = build_conv_vae(config).requires_grad_(False)
        self.register_buffers(persistent=True)

    def initial_buffers(self) -> dict[str, torch.Tensor]:
        """Return the buffers before a fit: zero mean, unit variances."""
        return {
            "mean": torch.zeros(self.latent_dim, device="cpu"),
            "explained_variance": torch.ones(self.latent_dim, device="cpu"),
            "fitted": torch.tensor(False, device="cpu"),
        }

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
    """Build the untrained `AutoencoderKL` of a configuration, or raise a `ValueError` without diffusers."""
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


def build_tokenizer(config: LDAEConfig) -> LatentTokenizer:
    """Build the latent tokenizer of a configuration, unfitted."""
    if config.latent_tokenizer == "conv_vae":
        return ConvVAETokenizer(config)
    tokenizer_class = PATCH_TOKENIZERS[config.latent_tokenizer]
    return tokenizer_class(config.patch_size, config.num_channels, config.latent_dim, config.latent_scaling)
