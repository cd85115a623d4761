"""Pictures to the model's pixels, and back to what a caller of a pipeline asked for."""

from collections.abc import Sequence

import numpy as np
import PIL.Image
import torch


Images = list[PIL.Image.Image] | np.ndarray | torch.Tensor
OUTPUT_TYPES = ("pil", "np", "pt")


def to_pixels(
    images: PIL.Image.Image | Sequence[PIL.Image.Image] | torch.Tensor, image_size: int, num_channels: int
) -> torch.Tensor:
    """
    Args:
        images (`PIL.Image.Image`, a sequence of them, or `torch.Tensor` of shape `(B, C, S, S)` or `(C, S, S)`): Pictures
            of any kind, converted, resized and cropped as in training; or pixels in [0, 1], taken as they are.
        image_size (`int`): S, in pixels.
        num_channels (`int`): C.

    Returns:
        `torch.FloatTensor` of shape `(B, C, S, S)` in [-1, 1].

    Raises:
        ValueError: for a tensor of another shape or range.
    """
    if not isinstance(images, torch.Tensor):
        from ldae.data.decode import image_to_pixels  # it comes with all sources of images: only where it is needed

        images = [images] if isinstance(images, PIL.Image.Image) else images
        decoded = np.stack([image_to_pixels(image, num_channels, image_size) for image in images])
        return torch.from_numpy(decoded).float() / 127.5 - 1
    pixels = images[None] if images.ndim == 3 else images
    shape = (num_channels, image_size, image_size)
    if pixels.shape[1:] != shape:
        raise ValueError(
            f"images is a tensor of shape {tuple(images.shape)}; it must be (B, {', '.join(map(str, shape))}). PIL images "
            "may have any size."
        )
    low, high = pixels.min().item(), pixels.max().item()
    if not 0 <= low <= high <= 1:
        raise ValueError(
            f"images has values from {low:.3g} to {high:.3g}; a pipeline of diffusers takes tensors in [0, 1]. From "
            "[-1, 1] it is (images + 1) / 2."
        )
    return pixels.float() * 2 - 1


def from_pixels(pixels: torch.Tensor, output_type: str) -> Images:
    """
    Args:
        pixels (`torch.Tensor` of shape `(B, C, S, S)`): About [-1, 1]; what is beyond is clamped.
        output_type (`str`): `"pil"`, `"np"` or `"pt"`.

    Returns:
        A list of pictures, a `np.ndarray` of shape `(B, S, S, C)` or a `torch.Tensor` of shape `(B, C, S, S)`, the last
        two in [0, 1] and float32.
    """
    images = (pixels.float() / 2 + 0.5).clamp(0, 1)
    if output_type == "pt":
        return images
    array = images.cpu().permute(0, 2, 3, 1).numpy()  # (B, S, S, C)
    if output_type == "np":
        return array
    values = (array * 255).round().astype(np.uint8)
    return [PIL.Image.fromarray(value[..., 0] if value.shape[-1] == 1 else value) for value in values]
