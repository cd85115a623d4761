"""Picture of a search's result: the query image and its neighbours, with captions."""

from collections.abc import Sequence

import PIL.Image
import torch
from PIL import ImageDraw, ImageFont

from ldae.reports.samples import BACKGROUND, GAP, INK, to_picture


SIDE = 128  # of each image in the picture, in pixels
TEXT_SIZE = 13


def neighbour_picture(images: Sequence[torch.Tensor | None], captions: Sequence[Sequence[str]]) -> PIL.Image.Image:
    """Draw images side by side, with captions below.

    Args:
        images (`Sequence[torch.ByteTensor]` of shape `(C, S, S)`): Images of any size, with one or three channels, or
            `None` for an empty place.
        captions (`Sequence[Sequence[str]]`): Lines of text for each image; lines that are too wide are cut.

    Returns:
        `PIL.Image.Image`.

    Raises:
        ValueError: If there are no images, or another number of captions.

    Example:
        ```python
        >>> import torch
        >>> from ldae.reports.neighbours import neighbour_picture
        >>> neighbour_picture([torch.zeros(3, 16, 16, dtype=torch.uint8), None], [["query"], ["1.00", "cat"]]).size
        (268, 176)

        ```
    """
    if not images or len(images) != len(captions):
        raise ValueError(
            f"{len(images)} images have {len(captions)} captions; give one caption for each of at least one image."
        )
    font = ImageFont.load_default(TEXT_SIZE)
    line_height = TEXT_SIZE + 5
    height = GAP + SIDE + GAP + line_height * max(map(len, captions)) + GAP
    canvas = PIL.Image.new("RGB", (GAP + len(images) * (SIDE + GAP), height), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for i, (image, lines) in enumerate(zip(images, captions, strict=True)):
        left = GAP + i * (SIDE + GAP)
        if image is not None:
            canvas.paste(to_picture(image, SIDE, smooth=image.shape[-1] > SIDE), (left, GAP))
        for j, line in enumerate(lines):
            shown = line
            while shown and font.getlength(shown) > SIDE:
                shown = shown.rstrip("…")[:-1] + "…" if len(shown) > 1 else ""
            draw.text((left, GAP + SIDE + GAP + j * line_height), shown, INK, font)
    return canvas
