"""Grid of pictures with named rows and columns."""

import PIL.Image
from PIL import ImageDraw, ImageFont


GAP = 6
TEXT_SIZE = 15
LINE = TEXT_SIZE + 8
BACKGROUND, INK = (255, 255, 255), (60, 60, 60)


def tile_grid(rows: list[tuple[str, list[PIL.Image.Image]]], heads: list[str]) -> PIL.Image.Image:
    """Draw pictures in a grid, with the name of each row above it.

    Args:
        rows (`list[tuple[str, list[PIL.Image.Image]]]`): Name and pictures of each row, all of one size.
        heads (`list[str]`): Name of each column.

    Returns:
        `PIL.Image.Image`.

    Example:
        ```python
        >>> import PIL.Image
        >>> from ldae.reports.tile_grid import tile_grid
        >>> tile = PIL.Image.new("RGB", (96, 96))
        >>> tile_grid([("block 1", [tile, tile]), ("block 2", [tile, tile])], ["t = 0", "t = 10"]).size
        (210, 279)

        ```
    """
    side = rows[0][1][0].width
    width = GAP + len(heads) * (side + GAP)
    canvas = PIL.Image.new("RGB", (width, LINE + len(rows) * (LINE + side + GAP) + GAP), BACKGROUND)
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(TEXT_SIZE)
    for column, head in enumerate(heads):
        draw.text((GAP + column * (side + GAP) + side / 2, LINE / 2), head, INK, font, anchor="mm")
    for row, (name, tiles) in enumerate(rows):
        top = LINE + row * (LINE + side + GAP)
        draw.text((GAP, top + LINE / 2), name, INK, font, anchor="lm")
        for column, tile in enumerate(tiles):
            canvas.paste(tile, (GAP + column * (side + GAP), top + LINE))
    return canvas
