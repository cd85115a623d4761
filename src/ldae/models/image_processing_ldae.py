"""Conversion of any image to 8-bit RGB or luminance, and the image processor and pipelines that convert so.

It is one definition for the data, the image processor of checkpoints and transformers' image pipelines.
"""

import base64
import os
from io import BytesIO
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps
from transformers import ImageClassificationPipeline, ImageFeatureExtractionPipeline, ViTImageProcessorPil


# Looking for an orientation is slow; Pillow sets one of these keys if there may be one.
_ORIENTATION_KEYS = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")
# A longer side is cut to this many times the shorter one before resizing: a 1 x 10,000 image would otherwise be
# enlarged to hundreds of millions of pixels, of which the centre crop keeps one square.
MAX_ASPECT_RATIO = 16


def open_image(source: str | Image.Image, timeout: float | None = None) -> Image.Image:
    """Open an image without converting it.

    Args:
        source (`str` or `PIL.Image.Image`): A path, an address (http or https), the file in base64, or an image, which
            is returned unchanged.
        timeout (`float`, *optional*): Seconds to wait for an address.

    Raises:
        ValueError: If the text is none of these, or the file is damaged or no image.
    """
    if isinstance(source, Image.Image):
        return source
    if source.startswith(("http://", "https://")):
        from transformers.image_utils import httpx  # the client of its own `load_image`

        return Image.open(BytesIO(httpx.get(source, timeout=timeout, follow_redirects=True).content))
    if os.path.isfile(source):
        try:
            image = Image.open(source)
            image.load()
        except Exception as error:  # a damaged file makes Pillow's plugins raise almost anything
            raise ValueError(f"image={source!r} cannot be read ({error}); give another file.") from error
        return image
    encoded = source.split(",")[1] if source.startswith("data:image/") else source
    try:
        return Image.open(BytesIO(base64.decodebytes(encoded.encode())))
    except Exception as error:
        raise ValueError(
            f"image={source[:80]!r} is no existing file, no address and no image in base64 ({error})."
        ) from error


def convert_image(image: Image.Image, mode: str = "RGB", notes: list[str] | None = None) -> Image.Image:
    """Convert an image of any kind to 8-bit RGB or luminance, as the training data are.

    The EXIF orientation is applied, transparency composited on white, 16-bit values are scaled to 8 bits, and every
    colour space is converted.

    Args:
        image (`PIL.Image.Image`): The image.
        mode (`str`): `"RGB"` or `"L"`.
        notes (`list[str]`, *optional*): The names of the conversions that were needed are appended to it.

    Example:
        >>> convert_image(Image.new("I;16", (4, 4), 65535)).getpixel((0, 0))
        (255, 255, 255)
    """
    notes = [] if notes is None else notes
    image.load()  # some formats store the orientation or the transparency after the pixels
    if read_orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
        notes.append("rotated by EXIF")
    if image.mode == mode and "transparency" not in image.info:
        return image
    if image.mode.startswith("I") or image.mode == "F":
        image = _to_8_bit(image, notes)
    elif image.mode == "CMYK":
        notes.append("CMYK")
    elif image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        notes.append("transparency")
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    elif image.mode == "P":
        notes.append("palette")
        image = image.convert("RGB")
    elif image.mode in ("L", "1"):
        notes.append("greyscale")
    elif image.mode == "RGB":
        notes.append("colour to luminance")
    else:
        notes.append("colour space")
        image = image.convert("RGB")  # Pillow cannot convert LAB and HSV to luminance directly
    return image.convert(mode)


def crop_narrow_image(image: Image.Image, notes: list[str] | None = None) -> Image.Image:
    """Crop the centre of an image whose longer side exceeds `MAX_ASPECT_RATIO` times the shorter one."""
    width, height = image.size
    longest = MAX_ASPECT_RATIO * min(width, height)
    if max(width, height) <= longest:
        return image
    if notes is not None:
        notes.append("very narrow")
    crop_width, crop_height = min(width, longest), min(height, longest)
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return image.crop((left, top, left + crop_width, top + crop_height))


def read_orientation(image: Image.Image) -> int:
    """Read the EXIF orientation, 1 to 8; 1 is upright. Rows and columns are exchanged from 5 on."""
    if not any(key in image.info for key in _ORIENTATION_KEYS):
        return 1  # Pillow turns a TIFF by itself when loading it
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    return orientation if orientation in range(2, 9) else 1


def _to_8_bit(image: Image.Image, notes: list[str]) -> Image.Image:
    """Scale integer or floating-point greyscale; Pillow's own conversion would clip the values at 255.

    Values that are not numbers become black, infinite ones white or black.
    """
    values = np.asarray(image).astype(np.float64)
    if image.mode == "F":
        notes.append("floating point")
        finite = np.isfinite(values)
        if not finite.all():
            notes.append("not finite")
            values[np.isnan(values)] = 0
        scale = 255.0 if values.max(where=finite, initial=0) <= 1 else 1.0
    else:
        notes.append("16-bit")
        # Files of 16 bits may come as 32-bit integers; only larger values show that all 32 are in use.
        scale = 255 / 65535 if values.max() <= 65535 else 255 / (2**32 - 1)
    return Image.fromarray(np.clip(np.rint(values * scale), 0, 255).astype(np.uint8))


class LDAEImageProcessor(ViTImageProcessorPil):
    """Image processor that sees every file as `ldae`'s own data loading does.

    Images of PIL and paths are first converted to 8-bit RGB, or to luminance if `do_convert_rgb` is false: 16-bit
    values are scaled, transparency is composited on white, and the EXIF orientation is applied. Arrays and tensors are
    pixels already and are not converted. It always resizes with Pillow, also where torchvision is installed.

    Args:
        **kwargs: Those of `ViTImageProcessor`.
    """

    do_convert_rgb = True

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Open paths and addresses without transformers' conversion to RGB."""
        if isinstance(image_url_or_urls, str):
            return open_image(image_url_or_urls)
        return super().fetch_images(image_url_or_urls)

    def read_image(self, image: str | Image.Image, timeout: float | None = None) -> Image.Image:
        """Open an image and convert it.

        Args:
            image (`str` or `PIL.Image.Image`): A path, an address, or an image of any kind.
            timeout (`float`, *optional*): Seconds to wait for an address.

        Returns:
            The image, upright, in 8-bit RGB or luminance.
        """
        return convert_image(open_image(image, timeout), "RGB" if self.do_convert_rgb else "L")

    def process_image(
        self, image: Any, do_convert_rgb: bool | None = None, input_data_format: Any = None, **kwargs: Any
    ) -> np.ndarray:
        """Convert an image, if it is one of PIL, and return its values with the channels first."""
        if isinstance(image, Image.Image):
            image = crop_narrow_image(convert_image(image, "RGB" if do_convert_rgb else "L"))
        return super().process_image(image, do_convert_rgb, input_data_format, **kwargs)


class LDAEImageFeatureExtractionPipeline(ImageFeatureExtractionPipeline):
    """`pipeline("image-feature-extraction")` that lets an [`LDAEImageProcessor`] open and convert files itself.

    The original converts every image to RGB first: 16-bit values are clipped at 255, and transparent pixels show their
    hidden colours.
    """

    _load_video_processor = False  # type: ignore[assignment] # transformers would look for one in remote code

    def preprocess(  # type: ignore[override] # as transformers' own does
        self, image: Any, timeout: float | None = None, **image_processor_kwargs: Any
    ) -> Any:
        """Convert an image, and prepare it as transformers does."""
        image = _convert(self.image_processor, image, timeout)
        return super().preprocess(image, timeout=timeout, **image_processor_kwargs)


class LDAEImageClassificationPipeline(ImageClassificationPipeline):
    """`pipeline("image-classification")` that lets an [`LDAEImageProcessor`] open and convert files itself."""

    _load_video_processor = False  # type: ignore[assignment]

    def preprocess(self, image: Any, timeout: float | None = None) -> Any:  # type: ignore[override]
        """Convert an image, and prepare it as transformers does."""
        return super().preprocess(_convert(self.image_processor, image, timeout), timeout=timeout)


def _convert(image_processor: Any, image: Any, timeout: float | None) -> Any:
    """Convert a file or an image of PIL, if the image processor can; arrays and tensors are pixels already."""
    read = getattr(image_processor, "read_image", None)
    return image if read is None or hasattr(image, "shape") else read(image, timeout)
