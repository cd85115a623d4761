"""Pictures of images side by side: samples by class, named rows and columns, a query and its neighbours."""

import math
from collections.abc import Sequence

import numpy as np
import PIL.Image
import torch
from PIL import ImageDraw, ImageFont


BACKGROUND, INK = (255, 255, 255), (60, 60, 60)
GAP = 4  # pixels between images
LEAST_SIDE = 64  # pixels; smaller samples are enlarged by a whole factor, so that their pixels stay squares
SAMPLE_TEXT = 16  # sizes of text
TILE_GAP, TILE_TEXT = 6, 15
TILE_LINE = TILE_TEXT + 8
NEIGHBOUR_SIDE, NEIGHBOUR_TEXT = 128, 13


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

    Raises:
        ValueError: If there are no images.

    Example:
        ```python
        >>> import torch
        >>> from ldae.reports.image_grids import sample_grid
        >>> sample_grid(torch.zeros(6, 3, 64, 64, dtype=torch.uint8), columns=3).size
        (208, 140)

        ```
    """
    if not len(images):
        raise ValueError("there are no images to draw.")
    if labels is None:
        parts = images.split(columns or math.ceil(math.sqrt(len(images))))
        rows = list(zip(row_names or [""] * len(parts), parts, strict=True))
    else:
        rows = [(str(label), images[labels == label]) for label in labels.unique().tolist()]
    side = images.shape[-1] * max(1, math.ceil(LEAST_SIDE / images.shape[-1]))
    font = ImageFont.load_default(SAMPLE_TEXT)
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


def tile_grid(rows: list[tuple[str, list[PIL.Image.Image]]], heads: list[str]) -> PIL.Image.Image:
    """Draw pictures in a grid, with the name of each row above it.

    Args:
        rows (`list[tuple[str, list[PIL.Image.Image]]]`): Name and pictures of each row, all of one size.
        heads (`list[str]`): Name of each column.

    Example:
        ```python
        >>> import PIL.Image
        >>> from ldae.reports.image_grids import tile_grid
        >>> tile = PIL.Image.new("RGB", (96, 96))
        >>> tile_grid([("block 1", [tile, tile]), ("block 2", [tile, tile])], ["t = 0", "t = 10"]).size
        (210, 279)

        ```
    """
    side = rows[0][1][0].width
    row_height = TILE_LINE + side + TILE_GAP
    size = (TILE_GAP + len(heads) * (side + TILE_GAP), TILE_LINE + len(rows) * row_height + TILE_GAP)
    canvas = PIL.Image.new("RGB", size, BACKGROUND)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(TILE_TEXT)
    for column, head in enumerate(heads):
        draw.text((TILE_GAP + column * (side + TILE_GAP) + side / 2, TILE_LINE / 2), head, INK, font, anchor="mm")
    for row, (name, tiles) in enumerate(rows):
        top = TILE_LINE + row * row_height
        draw.text((TILE_GAP, top + TILE_LINE / 2), name, INK, font, anchor="lm")
        for column, tile in enumerate(tiles):
            canvas.paste(tile, (TILE_GAP + column * (side + TILE_GAP), top + TILE_LINE))
    return canvas


def neighbour_picture(images: Sequence[torch.Tensor | None], captions: Sequence[Sequence[str]]) -> PIL.Image.Image:
    """Draw a query and its neighbours side by side, with captions below.

    Args:
        images (`Sequence[torch.ByteTensor]` of shape `(C, S, S)`): Images of any size, with one or three channels, or
            `None` for an empty place.
        captions (`Sequence[Sequence[str]]`): Lines of text for each image; lines that are too wide are cut.

    Raises:
        ValueError: If there are no images, or another number of captions.

    Example:
        ```python
        >>> import torch
        >>> from ldae.reports.image_grids import neighbour_picture
        >>> neighbour_picture([torch.zeros(3, 16, 16, dtype=torch.uint8), None], [["query"], ["1.00", "cat"]]).size
        (268, 176)

        ```
    """
    if not images or len(images) != len(captions):
        raise ValueError(
            f"{len(images)} images have {len(captions)} captions; give one caption for each of at least one image."
        )
    side, font = NEIGHBOUR_SIDE, ImageFont.load_default(NEIGHBOUR_TEXT)
    line_height = NEIGHBOUR_TEXT + 5
    height = GAP + side + GAP + line_height * max(map(len, captions)) + GAP
    canvas = PIL.Image.new("RGB", (GAP + len(images) * (side + GAP), height), BACKGROUND)
    draw = ImageDraw.Draw(canvas)
    for i, (image, lines) in enumerate(zip(images, captions, strict=True)):
        left = GAP + i * (side + GAP)
        if image is not None:
            canvas.paste(to_picture(image, side, smooth=image.shape[-1] > side), (left, GAP))
        for j, line in enumerate(lines):
            shown = line
            while shown and font.getlength(shown) > side:
                shown = shown.rstrip("…")[:-1] + "…" if len(shown) > 1 else ""
            draw.text((left, GAP + side + GAP + j * line_height), shown, INK, font)
    return canvas


def to_picture(image: torch.Tensor, side: int, *, smooth: bool = False) -> PIL.Image.Image:
    """Convert an image `(C, S, S)` in uint8, with one or three channels, to a picture `side` pixels wide."""
    array = np.ascontiguousarray(image.expand(3, -1, -1).permute(1, 2, 0).cpu().numpy())  # (S, S, 3)
    resampling = PIL.Image.Resampling.LANCZOS if smooth else PIL.Image.Resampling.NEAREST
    return PIL.Image.fromarray(array).resize((side, side), resampling)
