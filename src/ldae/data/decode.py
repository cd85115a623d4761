"""Decode an image to pixels: unusual kinds are converted and counted, and only unreadable ones refused.

Resizing and cropping give exactly the pixels of `LDAEImageProcessor` (PIL backend, bicubic, shortest edge to
`decode_size`, centre crop), so that training and the saved image processor see the same images. Large JPEG files are
decoded at a reduced scale, and then differ by a fraction of a grey level.
"""

import errno
import hashlib
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from ldae.models.image_processing_ldae import MAX_ASPECT_RATIO, convert_image, crop_narrow_image, read_orientation
from ldae.places import is_address


# Trying every known format takes longer than decoding a small image.
_MAGIC = ((b"\xff\xd8\xff", "JPEG"), (b"\x89PNG\r\n\x1a\n", "PNG"), (b"GIF8", "GIF"))

# Errors of the machine or its network drive, and no property of an image: it is not skipped.
PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT)

GREY_TOLERANCE = 8  # of 255: JPEG's rounding leaves a trace of colour in grey images


class UnreadableImageError(ValueError):
    """Error for an image that cannot be decoded; `reason` is a short name, counted in the log."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


# Decoders of JPEG can leave out high frequencies, which reduces the image by one of these factors and saves time.
REDUCTIONS = (8, 4, 2)
MARGIN = 3  # a reduced image is still this many times larger than the result, so that resizing decides how that looks

# From the width and height of an image to a box (left, top, right, bottom).
Crop = Callable[[int, int], tuple[float, float, float, float]]


def decode_image(
    record: Any, num_channels: int, decode_size: int, crop: Crop | None = None, *, reduced: bool = True
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Decode one image.

    EXIF orientation is applied, and the first frame of an animation taken. Transparency is composited on white, 16-bit
    values are scaled to 8 bits, and every colour space is converted to RGB (`num_channels=3`) or luminance (1).

    Args:
        record (`bytes` or `dict`): The file's bytes, or `{"bytes": ..., "path": ...}`, of which one may be `None`.
        num_channels (`int`): 3 (RGB) or 1 (luminance).
        decode_size (`int`): Side of the result in pixels.
        crop (`Callable`, *optional*): From the image's width and height to the box `(left, top, right, bottom)` that
            is resized to the result, bilinearly with antialiasing. By default the shortest edge is resized and the
            centre cropped.
        reduced (`bool`, defaults to `True`): Decode a JPEG file at a half, a quarter or an eighth of its size if that
            is at least three times the size needed.

    Returns:
        The pixels, a `np.ndarray` of shape `(num_channels, decode_size, decode_size)` in uint8, and the names of the
        conversions that were needed, an empty tuple for an ordinary image.

    Raises:
        UnreadableImageError: If the file is missing, empty, truncated, too large or no image.
        ValueError: If `num_channels` is neither 1 nor 3.

    Example:
    ```python
    >>> import io
    >>> from PIL import Image
    >>> from ldae.data import decode_image
    >>> file = io.BytesIO()
    >>> Image.new("L", (20, 30)).save(file, "PNG")
    >>> pixels, notes = decode_image(file.getvalue(), num_channels=3, decode_size=16)
    >>> pixels.shape, notes
    ((3, 16, 16), ('greyscale',))

    ```
    """
    if num_channels not in (1, 3):
        raise ValueError(f"num_channels={num_channels} must be 3 (RGB) or 1 (luminance).")
    notes: list[str] = []
    with _opened(record, notes) as image:
        whole = reduce_jpeg(image, decode_size, crop) if reduced else None
        return image_to_pixels(image, num_channels, decode_size, notes, crop, whole), tuple(notes)


def decode_whole_image(record: Any, num_channels: int) -> tuple[Image.Image, tuple[str, ...]]:
    """Decode one image without resizing or cropping it, for networks with their own image processor.

    Returns:
        The image in RGB or luminance, and the names of the conversions that were needed; see [`decode_image`].
    """
    notes: list[str] = []
    with _opened(record, notes) as image:
        return convert_image(image, "RGB" if num_channels == 3 else "L", notes).copy(), tuple(notes)


@dataclass(frozen=True)
class ImageFacts:
    """Description of an image: what its file declares, and what its pixels show."""

    width: int  # in pixels, upright
    height: int
    mode: str  # Pillow's, of the stored pixels, such as RGB or I;16
    has_colour: bool  # false if all pixels are grey, also in a file with three channels
    digest: str  # of the file, the same for exact duplicates


def examine_image(record: Any) -> ImageFacts:
    """Decode one image and describe it; see [`decode_image`]."""
    data = read_bytes(record)
    with _opened(data, []) as image:
        mode, upright = image.mode, convert_image(image)
        small = np.asarray(upright.resize((32, 32))).astype(int)  # (32, 32, 3)
        has_colour = bool((small.max(axis=2) - small.min(axis=2)).max() > GREY_TOLERANCE)
        return ImageFacts(*upright.size, mode, has_colour, hashlib.sha256(data).hexdigest())


@contextmanager
def _opened(record: Any, notes: list[str]) -> Iterator[Image.Image]:
    """Yield a record's image; any error with it, also in the block, is an UnreadableImageError."""
    data = read_bytes(record)
    # A damaged file makes Pillow's plugins raise almost anything (OSError, SyntaxError, struct.error, ...).
    try:
        with Image.open(io.BytesIO(data), formats=_guess_formats(data)) as opened:
            if getattr(opened, "is_animated", False):
                notes.append("animated")
            yield opened
    except UnidentifiedImageError as error:
        raise UnreadableImageError("not an image") from error
    except Image.DecompressionBombError as error:
        raise UnreadableImageError("too large") from error
    except Exception as error:
        raise UnreadableImageError("truncated or damaged") from error


def reduce_jpeg(image: Image.Image, size: int, crop: Crop | None = None) -> tuple[int, int, int] | None:
    """Let the decoder reduce a JPEG file that is much larger than needed; call it before the image is loaded.

    Returns:
        Width and height of the whole upright image, and the factor of the reduction; `None` for an image that is
        decoded whole.
    """
    if image.format not in ("JPEG", "MPO"):
        return None
    orientation = read_orientation(image)
    width, height = image.size if orientation < 5 else image.size[::-1]
    left, top, right, bottom = (0, 0, width, height) if crop is None else crop(width, height)
    needed, shorter = MARGIN * size, min(right - left, bottom - top)
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        return None
    for factor in REDUCTIONS:
        # A side that is no multiple ends in a partial pixel, which would come first in a turned image.
        exact = orientation == 1 or not (width % factor or height % factor)
        if exact and shorter >= factor * needed and image.draft(None, (image.width // factor, image.height // factor)):
            return width, height, factor
    return None


def image_to_pixels(
    image: Image.Image,
    num_channels: int,
    size: int,
    notes: list[str] | None = None,
    crop: Crop | None = None,
    whole: tuple[int, int, int] | None = None,
) -> np.ndarray:
    """Convert a decoded image of any kind to pixels: shortest edge to `size` and centre crop, or a box.

    See [`decode_image`]; the names of the conversions that were needed are appended to `notes`, and `whole` is what
    [`reduce_jpeg`] returned for the image.

    Returns:
        `np.ndarray` of shape `(num_channels, size, size)` in uint8.
    """
    notes = [] if notes is None else notes
    image = convert_image(image, "RGB" if num_channels == 3 else "L", notes)
    if whole is None:
        image = crop_narrow_image(image, notes) if crop is None else image
        whole = (*image.size, 1)
    if crop is None:
        image = _resize_and_crop(image, size, *whole)
    else:
        width, height, factor = whole
        left, top, right, bottom = (edge / factor for edge in crop(width, height))
        image = image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, right, bottom))
    pixels = np.asarray(image)
    if num_channels == 1:
        return pixels[None]  # (1, S, S)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))  # (3, S, S)


def read_bytes(record: Any) -> bytes:
    """Read the file of a record.

    Raises:
        UnreadableImageError: If it is missing, forbidden or empty.
    """
    path = None
    if isinstance(record, dict):
        record, path = record.get("bytes"), record.get("path")
    if record is None and path is not None:
        record = _read_path(path)
    if record is None:
        raise UnreadableImageError("no image in the row")
    if len(record) == 0:
        raise UnreadableImageError("empty file")
    return bytes(record)


def _read_path(path: str) -> bytes:
    if is_address(path):
        # A failing network is no property of the image: its errors pass through and nothing is skipped.
        from datasets.utils.file_utils import xopen

        with xopen(path, "rb") as remote:
            return remote.read()
    try:
        with open(os.path.expanduser(path), "rb") as file:
            return file.read()
    except OSError as error:
        if error.errno in PASSING:
            raise
        raise UnreadableImageError("missing or forbidden file") from error


def _guess_formats(data: bytes) -> list[str] | None:
    for magic, name in _MAGIC:
        if data.startswith(magic):
            return [name, "MPO"] if name == "JPEG" else [name]
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return ["WEBP"]
    return None  # all that Pillow knows


def _resize_and_crop(image: Image.Image, size: int, width: int, height: int, factor: int) -> Image.Image:
    """Resize the shortest edge to `size` and crop the centre, with the rounding of transformers.

    `width` and `height` are those of the whole image, which `image` may be reduced from by `factor`.
    """
    if (width, height) == (size, size):
        return image
    if width <= height:
        new_width, new_height = size, int(size * height / width)
    else:
        new_width, new_height = int(size * width / height), size
    if (new_width, new_height) != (width, height):
        box = (0.0, 0.0, width / factor, height / factor)
        image = image.resize((new_width, new_height), Image.Resampling.BICUBIC, box=box)
    left, top = (new_width - size) // 2, (new_height - size) // 2
    if (new_width, new_height) == (size, size):
        return image
    return image.crop((left, top, left + size, top + size))
