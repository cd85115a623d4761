"""transformers' two image pipelines, which let an [`LDAEImageProcessor`] open and convert files itself.

The originals convert every image to RGB before the image processor sees it: 16-bit values are clipped at 255, and
transparent pixels show their hidden colours.
"""

from typing import Any

from transformers import ImageClassificationPipeline, ImageFeatureExtractionPipeline


class LDAEImageFeatureExtractionPipeline(ImageFeatureExtractionPipeline):
    """`pipeline("image-feature-extraction")` with the conversion of the model's image processor."""

    _load_video_processor = False  # type: ignore[assignment] # transformers would look for one in remote code

    def preprocess(  # type: ignore[override] # as transformers' own does
        self, image: Any, timeout: float | None = None, **image_processor_kwargs: Any
    ) -> Any:
        """Convert an image, and prepare it as transformers does."""
        image = _convert(self.image_processor, image, timeout)
        return super().preprocess(image, timeout=timeout, **image_processor_kwargs)


class LDAEImageClassificationPipeline(ImageClassificationPipeline):
    """`pipeline("image-classification")` with the conversion of the model's image processor."""

    _load_video_processor = False  # type: ignore[assignment]

    def preprocess(self, image: Any, timeout: float | None = None) -> Any:  # type: ignore[override]
        """Convert an image, and prepare it as transformers does."""
        return super().preprocess(_convert(self.image_processor, image, timeout), timeout=timeout)


def _convert(image_processor: Any, image: Any, timeout: float | None) -> Any:
    """Convert a file or an image of PIL, if the image processor can; arrays and tensors are pixels already."""
    read = getattr(image_processor, "read_image", None)
    return image if read is None or hasattr(image, "shape") else read(image, timeout)
