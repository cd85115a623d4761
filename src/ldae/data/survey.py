"""A survey of a data set: how many images of which sizes and kinds, labels, duplicates, and what cannot be read."""

import time
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ldae import stopping

from .batch import Decoder
from .decode import ImageFacts, UnreadableImageError, examine_image
from .rows import read_labels, read_rows, spread_rows
from .sources import ImageSource


ROWS_AT_ONCE = 64
LISTED = 3  # files that a line names
KINDS = {
    "1": "black and white (1 bit)",
    "L": "grey (8 bits)",
    "LA": "grey with transparency (8 bits)",
    "I": "grey (32 bits)",
    "F": "grey (floating point)",
    "P": "palette (8 bits)",
    "RGB": "RGB (8 bits)",
    "RGBA": "RGB with transparency (8 bits)",
    "CMYK": "CMYK (8 bits)",
}


@dataclass(frozen=True)
class ImageSurvey:
    """Contents of a data set.

    Args:
        num_images (`int`): Images of the split, also unreadable ones.
        facts (`list[ImageFacts]`): What the readable images are, in order.
        unreadable (`list`): Name and reason of each examined image that cannot be read.
        duplicates (`list[list[str]]`): Names of files with the same content, a list for each content.
        classes (`Counter`, *optional*): Images by class; `None` without a column of labels.
    """

    num_images: int
    facts: list[ImageFacts]
    unreadable: list[tuple[str, str]]
    duplicates: list[list[str]]
    classes: Counter[str] | None

    @property
    def num_examined(self) -> int:
        """Images that were opened."""
        return len(self.facts) + len(self.unreadable)

    @property
    def shorter_side(self) -> int:
        """Median of the shorter sides, in pixels."""
        return int(np.median([min(fact.width, fact.height) for fact in self.facts]))

    @property
    def has_colour(self) -> bool:
        """True if some image shows colour."""
        return any(fact.has_colour for fact in self.facts)

    def lines(self) -> list[str]:
        """Describe the survey in a few lines."""
        part = "" if self.num_examined == self.num_images else f", of which {self.num_examined:,} were examined"
        sizes = Counter((fact.width, fact.height) for fact in self.facts)
        widths, heights = ([getattr(fact, side) for fact in self.facts] for side in ("width", "height"))
        if len(sizes) == 1:
            size = f"all {widths[0]} x {heights[0]}"
        else:
            ranges = f"{min(widths)} to {max(widths)} wide and {min(heights)} to {max(heights)} high"
            size = f"{ranges}, the shorter side {self.shorter_side} in the median"
        kinds = Counter(_kind(fact.mode) for fact in self.facts)
        grey = "" if self.has_colour else "; none shows colour"
        return [
            f"Images: {self.num_images:,}{part}",
            f"Sizes: {size}",
            f"Kinds: {', '.join(f'{count:,} {kind}' for kind, count in kinds.most_common())}{grey}",
            f"Labels: {self._describe_classes()}",
            f"Duplicates: {self._describe_duplicates()}",
            f"Unreadable: {self._describe_unreadable()}",
        ]

    def _describe_classes(self) -> str:
        if not self.classes:
            return "none (at least two sub-folders at one depth would be labels); pre-training needs none"
        counts = self.classes.most_common()
        (largest, most), (smallest, least) = counts[0], counts[-1]
        names = ", ".join(sorted(self.classes)) if len(counts) <= 6 else f"such as {largest}"
        return f"{len(counts)} classes ({names}), from {least:,} ({smallest}) to {most:,} ({largest}) images"

    def _describe_duplicates(self) -> str:
        if not self.duplicates:
            return "none"
        copies = sum(len(group) - 1 for group in self.duplicates)
        shown = "; ".join(" = ".join(group[:LISTED]) for group in self.duplicates[:LISTED])
        return (
            f"{copies:,} exact {'copy' if copies == 1 else 'copies'} of other files ({shown}{_more(self.duplicates)})"
        )

    def _describe_unreadable(self) -> str:
        if not self.unreadable:
            return "none"
        shown = "; ".join(f"{name}: {reason}" for name, reason in self.unreadable[:LISTED])
        return f"{len(self.unreadable):,}, which training skips ({shown}{_more(self.unreadable)})"


def survey_images(source: ImageSource, examine: int = 2000) -> ImageSurvey:
    """Look at the images of a source.

    Args:
        source (`ImageSource`): A source that is not streamed.
        examine (`int`, defaults to 2000): At most so many images are decoded, spread over the source.

    Returns:
        [`ImageSurvey`].

    Raises:
        ValueError: If none of the examined images can be read.

    Example:
    ```python
    >>> from ldae.data import DataConfig, open_images, survey_images
    >>> survey = survey_images(open_images(DataConfig("digits")), examine=50)
    >>> survey.lines()[1]
    'Sizes: all 16 x 16'

    ```
    """
    count = len(source.dataset)
    rows = spread_rows(source, examine)
    facts, unreadable = [], []
    names: dict[str, list[str]] = defaultdict(list)  # by content
    for start in range(0, len(rows), ROWS_AT_ONCE):
        stopping.check()
        some = rows[start : start + ROWS_AT_ONCE]
        for row, record in zip(some, read_rows(source, some)[0], strict=True):
            name = _name(record, row)
            try:
                facts.append(examine_image(record))
            except UnreadableImageError as error:
                unreadable.append((name, error.reason))
            else:
                names[facts[-1].digest].append(name)
    if not facts:
        name, reason = unreadable[0]
        raise ValueError(f"{source.description}: none of {len(rows):,} images can be read ({name}: {reason}).")
    duplicates = [group for group in names.values() if len(group) > 1]
    return ImageSurvey(count, facts, unreadable, duplicates, _count_classes(source))


def time_reading(source: ImageSource, image_size: int, *, count: int = 64) -> float:
    """Measure the seconds that a loader takes to read and decode an image, on `count` spread over a source."""
    decoder, counts = Decoder(3, image_size, reduced=source.reduced_decoding), Counter[str]()
    rows = spread_rows(source, count)
    started = time.perf_counter()
    for record in read_rows(source, rows)[0]:
        decoder(record, counts)
    return (time.perf_counter() - started) / len(rows)


def _count_classes(source: ImageSource) -> Counter[str] | None:
    if source.label_column is None:
        return None
    labels = Counter(read_labels(source))
    names = source.class_names
    return Counter({str(k) if names is None else names[k]: count for k, count in labels.items() if k >= 0})


def _name(record: object, row: int) -> str:
    """Name an image by its folder and file, or by its row."""
    path = record.get("path") if isinstance(record, dict) else None
    return f"row {row}" if path is None else "/".join(Path(path).parts[-2:])


def _kind(mode: str) -> str:
    return "grey (16 bits)" if mode.startswith("I;16") else KINDS.get(mode, mode)


def _more(items: list[Any]) -> str:
    return ", ..." if len(items) > LISTED else ""
