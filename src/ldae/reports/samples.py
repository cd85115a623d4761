"""Picture of generated images as a grid, with a row for each class."""

import math
from collections.abc import Sequence

import numpy as np
import PIL.Image
import torch
from PIL import ImageDraw, ImageFont


LEAST_SIDE = 64  # pixels; smaller images are enlarged by a whole factor, so that their pixels stay squares
GAP = 4
TEXT_SIZE = 16
BACKGROUND, INK = (255, 255, 255), (60, 60, 60)


def sample_grid(
    images: torch.Tensor,
    labels: torch.Tensor | None = None,
    columns: int | None = None,
    row_names: Sequence[str] | None = None,
) -> PIL.Image.Image:
    """Draw images side by side.

    Args:
        images (`torch.ByteTensor` of shape `(n, C, S, S)`): Images with one or three channels.
        labels (`torch.LongTensor` of shape `(n,)`, *optional*): Classes; each gets a row, with its number on the left.
        columns (`int`, *optional*): Images in a row if there are no classes; by default the grid is nearly square.
        row_names (`Sequence[str]`, *optional*): Names of rows of `columns` images, in place of classes.

    Returns:
        `PIL.Image.Image`.

    Raises:
        ValueError: If there are no images.

    Example:
        ```python
        >>> import torch
        >>> from ldae.reports.samples import sample_grid
        >>> sample_grid(torch.zeros(6, 3, 64, 64, dtype=torch.uint8), columns=3).size
        (208, 140)

        ```
    """
    if not len(images):
        raise ValueError("there are no images to draw.")
    if labels is None:
        columns = columns or math.ceil(math.sqrt(len(images)))
        parts = images.split(columns)
        rows = list(zip(row_names or [""] * len(parts), parts, strict=True))
    else:
        rows = [(str(label), images[labels == label]) for label in labels.unique().tolist()]
    scale = max(1, math.ceil(LEAST_SIDE / images.shape[-1]))
    side = scale * images.shape[-1]
    font = ImageFont.load_default(TEXT_SIZE)
    widest = max(font.getlength(name) for name, _ in rows)
    margin = GAP + (math.ceil(widest) + 2 * GAP if widest else 0)
    width = margin + max(len(part) for _, part in rows) * (side + GAP)
    canvas = PIL.Image.new("RGB", (width, GAP + len(rows) * (side + GAP)), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for i, (name, part) in enumerate(rows):
        top = GAP + i * (side + GAP)
        draw.text((margin - 2 * GAP, top + side / 2), name, INK, font, anchor="rm")
        for j, image in enumerate(part):
            canvas.paste(to_picture(image, side), (margin + j * (side + GAP), top))
    return canvas


def to_picture(image: torch.Tensor, side: int, *, smooth: bool = False) -> PIL.Image.Image:
    """Convert an image `(C, S, S)` in uint8, with one or three channels, to a picture `side` pixels wide."""
    array = np.ascontiguousarray(image.expand(3, -1, -1).permute(1, 2, 0).cpu().numpy())  # (S, S, 3)
    resampling = PIL.Image.Resampling.LANCZOS if smooth else PIL.Image.Resampling.NEAREST
    return PIL.Image.fromarray(array).resize((side, side), resampling)
