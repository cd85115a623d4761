"""Conversion between pictures and a model's pixels, and the arguments and outputs of pipelines."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch
from diffusers.utils import BaseOutput


Images = list[PIL.Image.Image] | np.ndarray | torch.Tensor
Generators = torch.Generator | list[torch.Generator] | None
Labels = int | Sequence[int] | torch.Tensor | None
OUTPUT_TYPES = ("pil", "np", "pt")


@dataclass
class LDAEDenoisingOutput(BaseOutput):
    """Images before and after denoising.

    Args:
        images (`list[PIL.Image.Image]`, `np.ndarray` or `torch.Tensor`): The denoised images.
        noisy_images (as `images`): The noisy ones; for an l-DAE its noisy latents, decoded by the tokenizer.
    """

    images: Images
    noisy_images: Images


def require_known(name: str, given: Sequence[str], known: Sequence[str]) -> None:
    """Refuse the first unknown value of an argument."""
    unknown = [value for value in given if value not in known]
    if unknown:
        raise ValueError(f"{name}={unknown[0]!r} is unknown; choose {', '.join(known)}.")


def to_pixels(
    images: PIL.Image.Image | Sequence[PIL.Image.Image] | torch.Tensor, image_size: int, num_channels: int
) -> torch.Tensor:
    """Convert pictures to a model's pixels.

    Args:
        images (`PIL.Image.Image`, a sequence of them, or `torch.Tensor` of shape `(B, C, S, S)` or `(C, S, S)`):
            Pictures of any kind, which are converted, resized and cropped as in training; or pixels in [0, 1], which
            are not.
        image_size (`int`): S, in pixels.
        num_channels (`int`): C.

    Returns:
        `torch.FloatTensor` of shape `(B, C, S, S)` in [-1, 1].

    Raises:
        ValueError: If a tensor has another shape or range.
    """
    if not isinstance(images, PIL.Image.Image) and not len(images):
        raise ValueError("images is empty; give one image or more.")
    if not isinstance(images, torch.Tensor):
        from ldae.data.decode import image_to_pixels  # loads all of ldae.data: only when needed

        images = [images] if isinstance(images, PIL.Image.Image) else images
        decoded = np.stack([image_to_pixels(image, num_channels, image_size) for image in images])
        return torch.from_numpy(decoded).float() / 127.5 - 1
    pixels = images[None] if images.ndim == 3 else images
    shape = (num_channels, image_size, image_size)
    if pixels.shape[1:] != shape:
        raise ValueError(
            f"images is a tensor of shape {tuple(images.shape)}; it must be (B, {', '.join(map(str, shape))}). PIL "
            "images may have any size."
        )
    low, high = pixels.min().item(), pixels.max().item()
    if not 0 <= low <= high <= 1:
        raise ValueError(
            f"images has values from {low:.3g} to {high:.3g}; a pipeline of diffusers takes tensors in [0, 1]. "
            "Convert from [-1, 1] with (images + 1) / 2."
        )
    return pixels.float() * 2 - 1


def from_pixels(pixels: torch.Tensor, output_type: str) -> Images:
    """Convert pixels `(B, C, S, S)`, clamped to [-1, 1], to a list of pictures (`output_type` `"pil"`) or to [0, 1].

    The values in [0, 1] are a float32 array `(B, S, S, C)` (`"np"`) or tensor `(B, C, S, S)` (`"pt"`).
    """
    images = (pixels.float() / 2 + 0.5).clamp(0, 1)
    if output_type == "pt":
        return images
    array = images.cpu().permute(0, 2, 3, 1).numpy()  # (B, S, S, C)
    if output_type == "np":
        return array
    values = (array * 255).round().astype(np.uint8)
    return [PIL.Image.fromarray(value[..., 0] if value.shape[-1] == 1 else value) for value in values]
