"""Rows of a data set, decoded in workers, in the pieces that make up the shards of a feature table."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.utils.data
from datasets import Features, Value

from ldae.data import ImageSource, UnreadableImageError, decode_image, prepare_images
from ldae.data.batch import CONVERTED, SKIPPED
from ldae.data.decode import decode_whole_image
from ldae.data.sources import ROWS_PER_READ


ROW, SHARD, FILE_NAME = "row", "shard", "file_name"
FEATURES = "features"  # the only column of features, or the beginning of the names of several
Shard = tuple[int, int]  # (part of the data set, 0 unless it is streamed; number of the shard in the part)


@dataclass(frozen=True)
class CroppedPixels:
    """Pixels for l-DAE and DDAE: uint8 `(C, S, S)`, shortest edge to S, centre crop."""

    num_channels: int
    size: int
    reduced: bool = True

    def __call__(self, record: Any) -> tuple[np.ndarray, tuple[str, ...]]:
        """Return the pixels of a record, and what was converted."""
        return decode_image(record, self.num_channels, self.size, reduced=self.reduced)

    def __str__(self) -> str:
        decoding = ", JPEG files decoded at reduced scale" if self.reduced else ""
        return f"centre crop, {self.num_channels} x {self.size} x {self.size}{decoding}"


@dataclass(frozen=True)
class ProcessedPixels:
    """Pixels from another model's own image processor, float32 `(C, S, S)`."""

    processor: Any
    num_channels: int = 3

    def __call__(self, record: Any) -> tuple[np.ndarray, tuple[str, ...]]:
        """Return the pixels of a record, and what was converted."""
        image, notes = decode_whole_image(record, self.num_channels)
        return self.processor(images=image, return_tensors="np")["pixel_values"][0], notes

    def __str__(self) -> str:
        settings = hashlib.sha256(self.processor.to_json_string().encode()).hexdigest()
        return f"{type(self.processor).__name__} {settings[:16]}"


Pixels = CroppedPixels | ProcessedPixels


def decode_records(
    pixels: Callable[[Any], tuple[np.ndarray, tuple[str, ...]]], records: Iterable[Any], counts: Counter[str]
) -> tuple[torch.Tensor | None, list[int], dict[int, str]]:
    """Decode records, and count conversions and skips.

    Returns:
        The readable images `(b, C, S, S)`, or `None` if there are none; their places among the records; and by place
        the reason why another cannot be read.
    """
    images: dict[int, np.ndarray] = {}
    unreadable: dict[int, str] = {}
    for place, record in enumerate(records):
        try:
            images[place], notes = pixels(record)
        except UnreadableImageError as error:
            unreadable[place] = error.reason
            counts[f"{SKIPPED} {error.reason}"] += 1
        else:
            counts.update(f"{CONVERTED} {note}" for note in notes)
    stacked = torch.from_numpy(np.stack(list(images.values()))) if images else None
    return stacked, list(images), unreadable


def model_input(images: torch.Tensor) -> torch.Tensor:
    """Turn images made by `Pixels`, `(b, C, S, S)`, into the model's input: uint8 becomes [-1, 1]."""
    if images.dtype != torch.uint8:
        return images
    return prepare_images(images, torch.arange(len(images)), 0, image_size=images.shape[-1])


@dataclass
class Piece:
    """Some rows of one shard, in order."""

    shard: Shard
    num_rows: int  # readable or not
    images: torch.Tensor | None  # (b, C, S, S), the readable ones, if any
    positions: torch.Tensor  # (b,), keys of their noise: the row, and for a stream its part too
    table: pa.Table  # their b rows of metadata
    skipped: list[dict[str, Any]]  # row, name and reason of each unreadable image
    counts: Counter[str]  # conversions and skips
    ends_shard: bool = False
    ends_part: bool = False  # the part of the data set ends here

    def pin_memory(self) -> "Piece":
        """Move the images to page-locked memory; torch's loader calls it if there is a GPU."""
        if self.images is not None:
            self.images = self.images.pin_memory()
        return self


class RowReader:
    """Maker of pieces from undecoded rows.

    Args:
        source ([`~ldae.data.ImageSource`]): The images; the table keeps its `other_columns`.
        pixels (`Pixels`): Makes pixels from a record.
        named (`bool`): The records have names, which the table keeps as `file_name`.
        root (`str`, *optional*): Folder that names are relative to.
    """

    def __init__(self, source: ImageSource, pixels: Pixels, *, named: bool, root: str | None = None) -> None:
        self.source, self.pixels, self.named = source, pixels, named
        self.root = None if root is None else os.path.abspath(os.path.expanduser(root))
        kept = [source.label_column] if source.label_column is not None else []
        kept += source.other_columns
        own = {ROW: Value("int64")}
        own |= {SHARD: Value("int64")} if source.streaming else {}
        own |= {FILE_NAME: Value("string")} if named else {}
        self.kept = {name: _free_name(name, {*own, *(other for other in kept if other != name)}) for name in kept}
        given = source.dataset.features or {}
        self.features = Features(own | {new: given[name] for name, new in self.kept.items()})

    def piece(self, shard: Shard, first: int, table: pa.Table) -> Piece:
        """Decode the rows of an Arrow table, which begins with row `first` of the part."""
        records = table.column(self.source.image_column).to_pylist()
        names = [self._name_of(record) for record in records]
        counts: Counter[str] = Counter()
        images, kept, unreadable = decode_records(self.pixels, records, counts)
        rows = first + np.array(kept, dtype=np.int64)
        others = table.select(list(self.kept)).take(pa.array(kept, pa.int64()))
        columns = {ROW: pa.array(rows), SHARD: pa.array(np.full(len(rows), shard[0]))}
        columns[FILE_NAME] = pa.array([names[i] for i in kept], pa.string())
        columns |= {new: others.column(name) for name, new in self.kept.items()}
        schema = pa.schema(list(self.features.arrow_schema))
        return Piece(
            shard=shard,
            num_rows=len(records),
            images=images,
            positions=torch.from_numpy(rows + (shard[0] << 32)),  # (b,)
            table=pa.Table.from_arrays(
                [columns[name].cast(schema.field(name).type) for name in schema.names], schema=schema
            ),
            skipped=[
                {SHARD: shard[0], ROW: first + i, FILE_NAME: names[i], "reason": reason}
                for i, reason in unreadable.items()
            ],
            counts=counts,
        )

    def _name_of(self, record: Any) -> str | None:
        path = record.get("path") if isinstance(record, dict) else None
        if path is None or not os.path.isabs(path):
            return path
        inside = None if self.root is None else os.path.relpath(path, self.root)
        return Path(path).name if inside is None or inside.startswith("..") else Path(inside).as_posix()


def _free_name(name: str, taken: Collection[str]) -> str:
    """Return a name that is not taken, and not a column of features: `source_NAME` if need be."""
    while name in taken or name.startswith(FEATURES):
        name = f"source_{name}"
    return name


@dataclass(eq=False)
class StoredPieces(torch.utils.data.Dataset[Piece]):
    """Pieces of a data set that is read in any order, by (number of the shard, rows, `True` if they are its last)."""

    reader: RowReader

    def __getitem__(self, task: tuple[int, range, bool]) -> Piece:
        number, rows, ends_shard = task
        table = self.reader.source.dataset[list(rows)]
        piece = self.reader.piece((0, number), rows.start, table)
        piece.ends_shard = ends_shard
        return piece


@dataclass(eq=False)
class StreamedPieces(torch.utils.data.IterableDataset[Piece]):
    """Pieces of a stream, whose parts (mostly files) are divided among the workers of the loader."""

    reader: RowReader
    rows_per_shard: int
    batch_size: int  # rows of a piece
    finished: Collection[Shard]  # written shards, whose rows are not decoded
    parts: Sequence[int]  # parts to read
    share: tuple[int, int] = (0, 1)  # (i, n) for every n-th shard of each part, from shard i on

    def __iter__(self) -> Iterator[Piece]:
        info = torch.utils.data.get_worker_info()
        worker, num_workers = (0, 1) if info is None else (info.id, info.num_workers)
        for part in self.parts[worker::num_workers]:
            yield from self._pieces_of(part)

    def _pieces_of(self, part: int) -> Iterator[Piece]:
        first = 0
        for table, ends_part in self._batches_of(part):
            number, offset = divmod(first, self.rows_per_shard)
            if (part, number) not in self.finished and number % self.share[1] == self.share[0]:
                piece = self.reader.piece((part, number), first, table)
                piece.ends_part = ends_part
                piece.ends_shard = ends_part or offset + len(table) == self.rows_per_shard
                yield piece
            first += len(table)

    def _batches_of(self, part: int) -> Iterator[tuple[pa.Table, bool]]:
        """Yield the undecoded rows of each piece, never of two shards, with `True` if they are the part's last."""
        dataset = self.reader.source.dataset
        rows = dataset.shard(dataset.num_shards, part).with_format("arrow").iter(ROWS_PER_READ)
        held: pa.Table | None = None
        begun = 0
        for table in rows:
            held = table if held is None else pa.concat_tables([held, table])
            while len(held) > (size := min(self.batch_size, self.rows_per_shard - begun % self.rows_per_shard)):
                yield held.slice(0, size), False  # more rows than this piece takes, so it is not the last
                held, begun = held.slice(size), begun + size
        yield dataset.features.arrow_schema.empty_table() if held is None else held, True
