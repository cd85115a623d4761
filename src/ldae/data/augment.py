"""Turn decoded pixels, or cached latents, into the model's input, on batched tensors and their device."""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch.nn import functional as F

from ..models.randomness_ldae import AUGMENTATION, keyed_uniform


CROP_RATIO = (3 / 4, 4 / 3)  # width / height
TRIALS = 10
BLOCK = 64  # number of positions whose boxes are drawn together


def prepare_images(
    images: torch.Tensor,
    positions: torch.Tensor,
    seed: int,
    *,
    image_size: int,
    random_resized_crop: bool = False,
    crop_scale: tuple[float, float] = (0.2, 1.0),
    crop_padding: int = 0,
    horizontal_flip: bool = False,
) -> torch.Tensor:
    """Scale pixels 0..255 to [-1, 1], and crop and flip them at random if asked.

    The crop is the usual one: a box of `crop_scale` of the area and of a ratio of sides between 3/4 and 4/3
    (log-uniform), drawn up to ten times until it fits and otherwise the whole image, resized bilinearly and
    antialiased. It is cut from decoded images; [`RandomCrop`] cuts the same box from the whole image while it is
    decoded. Box and flip depend only on `seed` and an example's position in the run. Without a crop the values are
    those of `ViTImageProcessor` with mean and standard deviation 0.5; images larger than `image_size` are
    centre-cropped.

    Args:
        images (`torch.ByteTensor` of shape `(b, C, R, R)`): Decoded images.
        positions (`torch.LongTensor` of shape `(b,)`): Position of each example in the run.
        seed (`int`): Seed of the run.
        image_size (`int`, in pixels): Side S of the result.
        random_resized_crop (`bool`, defaults to `False`): Crop a random box.
        crop_scale (`tuple[float, float]`, defaults to `(0.2, 1.0)`): Range of the box's share of the area.
        crop_padding (`int`, defaults to 0, in pixels): Shift each image at random by up to this many pixels in either
            direction, with black at the edges: the crop of a padded image that is usual for CIFAR. Excludes
            `random_resized_crop`.
        horizontal_flip (`bool`, defaults to `False`): Mirror each image with probability 1/2.

    Returns:
        `torch.FloatTensor` of shape `(b, C, S, S)` in float32, on the device of `images`.

    Raises:
        ValueError: If images are not square, or smaller than `image_size` and not randomly cropped, or both kinds of
            crop are requested.

    Example:
    ```python
    >>> import torch
    >>> from ldae.data import prepare_images
    >>> images = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1).expand(2, 3, 8, 8)
    >>> prepare_images(images, torch.arange(2), 0, image_size=8)[:, 0, 0, 0]
    tensor([-1.,  1.])

    ```
    """
    size = images.shape[-1]
    if images.shape[-2] != size:
        raise ValueError(f"decoded images must be square; these have {images.shape[-2]} x {size} pixels.")
    if random_resized_crop and crop_padding:
        raise ValueError(f"crop_padding={crop_padding} and random_resized_crop exclude each other; give one of them.")
    pixels = images.float() / 127.5 - 1  # (b, C, R, R)
    flip = torch.zeros(len(images), dtype=torch.bool, device=images.device)
    if random_resized_crop or crop_padding or horizontal_flip:
        uniform, coin = _draw(positions.to(images.device), seed)  # (b, 22), (b,)
        if horizontal_flip:
            flip = coin
        if random_resized_crop:
            boxes = draw_boxes(uniform, size, size, crop_scale)  # (b, 4)
            return _resize_boxes(pixels, boxes, flip, image_size)
    if size < image_size:
        raise ValueError(
            f"decoded images of {size} pixels are smaller than image_size={image_size}; raise data.decode_size."
        )
    if size > image_size:
        begin = (size - image_size) // 2
        pixels = pixels[..., begin : begin + image_size, begin : begin + image_size]
    if horizontal_flip:
        pixels = torch.where(flip[:, None, None, None], pixels.flip(-1), pixels)
    if crop_padding:
        pixels = _shift(pixels, (uniform[:, -2:] * (2 * crop_padding + 1)).long(), crop_padding)
    return pixels.contiguous()


def prepare_latents(
    latents: torch.Tensor, positions: torch.Tensor, seed: int, *, horizontal_flip: bool = False
) -> torch.Tensor:
    """Choose between the latents of images and of their mirror images as [`prepare_images`] flips pixels.

    Args:
        latents (`torch.Tensor` of shape `(b, V, N, d)`): Latents from a cache, of the images, and with V = 2 of the
            mirror images too.
        positions (`torch.LongTensor` of shape `(b,)`): Position of each example in the run.
        seed (`int`): Seed of the run.
        horizontal_flip (`bool`, defaults to `False`): Take the mirror image with probability 1/2; needs V = 2.

    Returns:
        `torch.FloatTensor` of shape `(b, N, d)` in float32, on the device of `latents`.

    Example:
    ```python
    >>> import torch
    >>> from ldae.data import prepare_latents
    >>> latents = torch.tensor([1.0, -1.0]).reshape(1, 2, 1, 1).expand(4, 2, 1, 1)
    >>> prepare_latents(latents, torch.arange(4), 0, horizontal_flip=True).flatten()
    tensor([-1.,  1., -1.,  1.])

    ```
    """
    if horizontal_flip:
        _, flip = _draw(positions.to(latents.device), seed)  # (b,)
        return torch.where(flip[:, None, None], latents[:, 1], latents[:, 0]).float()
    return latents[:, 0].float()


def _draw(positions: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw each example's augmentation: numbers in [0, 1) for its box `(b, 22)`, and its flip `(b,)`."""
    uniform = keyed_uniform(seed, AUGMENTATION, positions, 2 * TRIALS + 3)  # (b, 23)
    return uniform[:, :-1], uniform[:, -1] < 0.5


@dataclass(frozen=True)
class RandomCrop:
    """Random resized crop of a whole image, of any ratio of sides, for a decoder.

    The box depends only on `seed`, the example's position in the run and the image's size. For a square image it is
    the box that [`prepare_images`] cuts.

    """

    seed: int
    crop_scale: tuple[float, float]  # range of the box's share of the area

    def box(self, position: int, width: int, height: int) -> tuple[float, float, float, float]:
        """Draw the box of the example at a position: left, top, right and bottom in pixels, not rounded."""
        block, place = divmod(position, BLOCK)
        left, top, w, h = _block_of_boxes(self, block, width, height)[place]
        return left, top, min(left + w, width), min(top + h, height)  # rounding must not leave the image


@lru_cache(maxsize=16)  # one position costs as much as many, and images often have the same size
def _block_of_boxes(crop: RandomCrop, block: int, width: int, height: int) -> list[list[float]]:
    """Draw the boxes of `BLOCK` neighbouring positions for images of one size."""
    uniform, _ = _draw(torch.arange(block * BLOCK, (block + 1) * BLOCK), crop.seed)  # (BLOCK, 22)
    return draw_boxes(uniform, width, height, crop.crop_scale).tolist()


def draw_boxes(uniform: torch.Tensor, width: int, height: int, crop_scale: tuple[float, float]) -> torch.Tensor:
    """Draw boxes of the random resized crop inside images of one size.

    The numbers `uniform` `(b, 2 * TRIALS + 2)` in [0, 1) are area and ratio of each trial, then the location.

    Returns:
        `torch.FloatTensor` of shape `(b, 4)`: left, top, width, height in pixels, not rounded. If no trial fits, this
        is the largest box in the middle with an allowed ratio of sides; for a square image the whole.
    """
    low, high = (math.log(ratio) for ratio in CROP_RATIO)
    area = crop_scale[0] + (crop_scale[1] - crop_scale[0]) * uniform[:, :TRIALS]  # (b, trials), share of the area
    root_ratio = ((low + (high - low) * uniform[:, TRIALS : 2 * TRIALS]) / 2).exp()  # (b, trials)
    root_shape = math.sqrt(width / height)
    w, h = area.sqrt() * root_ratio / root_shape, area.sqrt() / root_ratio * root_shape  # (b, trials), shares of sides
    fits = (w <= 1) & (h <= 1)
    first = fits.int().argmax(dim=1, keepdim=True)  # (b, 1)
    none_fits = ~fits.any(dim=1)
    widest, narrowest = CROP_RATIO[1] * height / width, width / (CROP_RATIO[0] * height)
    w = w.gather(1, first)[:, 0].masked_fill(none_fits, min(1.0, widest))  # (b,)
    h = h.gather(1, first)[:, 0].masked_fill(none_fits, min(1.0, narrowest))  # (b,)
    place = uniform[:, -2:].masked_fill(none_fits[:, None], 0.5)  # (b, 2)
    left, top = place[:, 0] * (1 - w), place[:, 1] * (1 - h)  # (b,)
    return torch.stack([left * width, top * height, w * width, h * height], dim=1)  # (b, 4)


def _shift(pixels: torch.Tensor, places: torch.Tensor, padding: int) -> torch.Tensor:
    """Crop `(b, C, S, S)` from images padded with black, with their corners at `(b, 2)` (left, top)."""
    padded = F.pad(pixels, [padding] * 4, value=-1.0)  # black
    side = torch.arange(pixels.shape[-1], device=pixels.device)
    columns, rows = (place[:, None] + side for place in places.unbind(1))  # (b, S)
    images = torch.arange(len(pixels), device=pixels.device)[:, None, None]
    return padded[images, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)  # (b, C, S, S)


def _resize_boxes(pixels: torch.Tensor, boxes: torch.Tensor, flip: torch.Tensor, image_size: int) -> torch.Tensor:
    """Resize boxes `(b, 4)` of images `(b, C, R, R)` to `(b, C, S, S)`, bilinearly with antialiasing like Pillow."""
    left, top, width, height = boxes.unbind(1)  # (b,)
    columns = _resampling(left, width, pixels.shape[-1], image_size)  # (b, S, R)
    columns = torch.where(flip[:, None, None], columns.flip(1), columns)
    rows = _resampling(top, height, pixels.shape[-2], image_size)  # (b, S, R)
    narrowed = pixels @ columns.transpose(1, 2)[:, None]  # (b, C, R, S)
    return rows[:, None] @ narrowed  # (b, C, S, S)


def _resampling(begin: torch.Tensor, length: torch.Tensor, size: int, image_size: int) -> torch.Tensor:
    """Compute weights `(b, S, R)` that resize `length` of an axis's R pixels, from `begin` on, to S pixels."""
    step = (length / image_size)[:, None, None]  # (b, 1, 1), pixels of the image per pixel of the result
    target = torch.arange(image_size, device=begin.device) + 0.5
    centres = begin[:, None, None] + target[None, :, None] * step  # (b, S, 1)
    places = torch.arange(size, device=begin.device) + 0.5  # (R,)
    weights = (1 - (places - centres).abs() / step.clamp(min=1)).clamp(min=0)  # (b, S, R), a triangle
    return weights / weights.sum(dim=2, keepdim=True)
