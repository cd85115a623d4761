"""Image processor of checkpoints, which converts images as the training data, and transformers' pipelines with it."""

from typing import Any

import numpy as np
from PIL import Image
from transformers import ImageClassificationPipeline, ImageFeatureExtractionPipeline, ViTImageProcessorPil

from .image_conversion_ldae import convert_image, crop_narrow_image, open_image


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
