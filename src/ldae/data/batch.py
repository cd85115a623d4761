"""Batches of images or latents, and the decoders that make them from undecoded rows."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from .augment import RandomCrop
from .decode import UnreadableImageError, decode_image


CONVERTED, SKIPPED = "converted", "skipped"


@dataclass
class Batch:
    """Images of one micro-batch, or their cached latents.

    Args:
        images (`torch.ByteTensor` of shape `(b, C, R, R)`): Pixels in 0..255; `None` beside `latents`, which only
            pre-training reads.
        positions (`torch.LongTensor` of shape `(b,)`): Position of each example in the run, or its row in the data set
            if [`iterate_once`] made the batch.
        labels (`torch.LongTensor` of shape `(b,)`, *optional*): Classes, -1 for a row without one; `None` for a data
            set without labels.
        latents (`torch.Tensor` of shape `(b, V, N, d)`, *optional*): Latents of the images, and with V = 2 of their
            mirror images, in the cache's type.
    """

    images: torch.Tensor
    positions: torch.Tensor
    labels: torch.Tensor | None
    latents: torch.Tensor | None = None

    def pin_memory(self) -> "Batch":
        """Move the tensors to page-locked memory; torch's loader calls it if there is a GPU."""
        pinned: Any = {name: None if value is None else value.pin_memory() for name, value in vars(self).items()}
        return Batch(**pinned)


@dataclass
class WorkerBatch:
    """A batch with its worker's report: conversions and skips, and for a stream the worker's state."""

    batch: Batch
    counts: Counter[str] = field(default_factory=Counter)
    worker: int = 0
    state: dict[str, int] | None = None

    def pin_memory(self) -> "WorkerBatch":
        """Move the batch to page-locked memory."""
        return replace(self, batch=self.batch.pin_memory())


@dataclass(frozen=True)
class Decoder:
    """Decoder of records to pixels of one size, with counts of conversions and skips.

    Args:
        num_channels (`int`): 3 (RGB) or 1 (luminance).
        size (`int`, in pixels): Side of the result.
        crop ([`~ldae.data.augment.RandomCrop`], *optional*): Crops a random box of the image instead of its centre.
        reduced (`bool`, defaults to `True`): Decode large JPEG files at a reduced scale, see [`decode_image`].
    """

    num_channels: int
    size: int
    crop: RandomCrop | None = None
    reduced: bool = True

    def __post_init__(self) -> None:
        if self.num_channels not in (1, 3):
            raise ValueError(f"num_channels={self.num_channels} must be 3 (RGB) or 1 (luminance)")

    def __call__(self, record: Any, counts: Counter[str], position: int | None = None) -> np.ndarray | None:
        """Return the pixels `(C, R, R)`, or `None` for an unreadable image; a random box is drawn for the position."""
        box = None
        if self.crop is not None:
            if position is None:
                raise ValueError("position=None must be the example's position in the run, which draws its crop.")
            box = partial(self.crop.box, position)
        try:
            pixels, notes = decode_image(record, self.num_channels, self.size, box, reduced=self.reduced)
        except UnreadableImageError as error:
            counts[f"{SKIPPED} {error.reason}"] += 1
            return None
        for note in notes:
            counts[f"{CONVERTED} {note}"] += 1
        return pixels


@dataclass(frozen=True)
class CachedLatents:
    """Counterpart of [`Decoder`] for records that are latents `(V, N, d)`, or `None` for an unreadable image."""

    def __call__(
        self, record: np.ndarray | None, counts: Counter[str], position: int | None = None
    ) -> np.ndarray | None:
        """Return the latents."""
        if record is None:
            counts[f"{SKIPPED} unreadable when cached"] += 1
        return record


def make_batch(decoded: list[np.ndarray], positions: Iterable[int], labels: list[int] | None) -> Batch:
    """Stack decoded images `(C, R, R)`, or latents `(V, N, d)`, to a [`Batch`]."""
    images: Any = torch.from_numpy(np.stack(decoded))
    latents = None
    if images.dtype != torch.uint8:
        images, latents = None, images
    return Batch(
        images=images,  # (b, C, R, R)
        positions=torch.as_tensor(np.asarray(positions, dtype=np.int64)),  # (b,)
        labels=None if labels is None else torch.tensor(labels, dtype=torch.int64),  # (b,)
        latents=latents,  # (b, V, N, d)
    )


def make_labels(values: Iterable[int | None]) -> list[int]:
    """Convert labels to integers; a missing one is -1, as in the unlabelled test splits of the Hub."""
    return [-1 if value is None else int(value) for value in values]


def describe_counts(counts: Counter[str]) -> str:
    """Describe in one line how many images were converted or skipped.

    Args:
        counts (`Counter`): A loader's counts: `"converted greyscale"`, `"skipped empty file"`, ...

    Example:
    ```python
    >>> from collections import Counter
    >>> from ldae.data import describe_counts
    >>> describe_counts(Counter({"converted CMYK": 2, "skipped empty file": 1, "converted greyscale": 5}))
    'converted 7 (5 greyscale, 2 CMYK), skipped 1 (1 empty file)'
    >>> describe_counts(Counter())
    'all images read without conversion'

    ```
    """
    parts = []
    for kind in (CONVERTED, SKIPPED):
        found = [(key.removeprefix(f"{kind} "), n) for key, n in counts.most_common() if key.startswith(f"{kind} ")]
        if found:
            named = ", ".join(f"{n:,} {name}" for name, n in found)
            parts.append(f"{kind} {sum(n for _, n in found):,} ({named})")
    return ", ".join(parts) or "all images read without conversion"
