"""One pass over a source in stored order, for tokenizers, probes and evaluation."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
import torch.utils.data

from ldae import stopping

from .augment import RandomCrop
from .batch import Batch, Decoder, WorkerBatch
from .loader import make_torch_loader
from .rows import decode_rows, read_rows
from .sources import ImageSource
from .stream import read_stream


def iterate_once(
    source: ImageSource,
    *,
    image_size: int,
    batch_size: int,
    num_channels: int = 3,
    rank: int = 0,
    world_size: int = 1,
    whole_batches: bool = False,
    limit: int | None = None,
    num_workers: int = 0,
    decode_size: int | None = None,
    counts: Counter[str] | None = None,
    crop: RandomCrop | None = None,
    skip_positions: int = 0,
) -> Iterator[Batch]:
    """Read every readable image once, in stored order; the last batch is smaller.

    Args:
        source (`ImageSource`): The images.
        image_size (`int`, in pixels): Side of the decoded images, unless `decode_size` is given.
        batch_size (`int`): Images of a batch.
        num_channels (`int`, defaults to 3): 3 (RGB) or 1 (luminance).
        rank (`int`, defaults to 0): This process; it reads the rows i with `i % world_size == rank`.
        world_size (`int`, defaults to 1): Number of processes.
        whole_batches (`bool`, defaults to `False`): Divide batches and not rows: this process reads the batches i with
            `i % world_size == rank`, each of the rows that it has in one process, less unreadable images.
        limit (`int`, *optional*): Read only the first `limit` rows, over all processes.
        num_workers (`int`, defaults to 0): Worker processes; a streamed source uses at most one.
        decode_size (`int`, *optional*, in pixels): See [`DataConfig`].
        counts (`Counter`, *optional*): Conversions and skips are added to it.
        crop ([`~ldae.data.augment.RandomCrop`], *optional*): Crops a random box of each whole image, drawn for the
            position row + `skip_positions`.
        skip_positions (`int`, defaults to 0): First position of this pass, so that each pass draws other boxes.

    Returns:
        Iterator of [`Batch`]; `positions` are the rows.

    Raises:
        ValueError: While iterating, if a process had rows and none of them could be read.

    Example:
    ```python
    >>> from ldae.data import DataConfig, iterate_once, open_images
    >>> source = open_images(DataConfig("digits"), "test")
    >>> [len(batch.images) for batch in iterate_once(source, image_size=16, batch_size=100, limit=250)]
    [100, 100, 50]

    ```
    """
    if batch_size < 1 or not 0 <= rank < world_size or (limit is not None and limit < 1):
        raise ValueError(
            f"batch_size={batch_size} and limit={limit} must be at least 1, and rank={rank} from 0 to "
            f"{world_size - 1}."
        )
    decoder = Decoder(num_channels, decode_size or image_size, crop, source.reduced_decoding)
    rows = StoredOrder(source, decoder, batch_size, rank, world_size, whole_batches, limit, skip_positions)
    loader = make_torch_loader(rows, min(num_workers, 1) if source.streaming else num_workers)
    size = None if whole_batches else batch_size
    return _full_batches(loader, size, source, Counter() if counts is None else counts)


@dataclass(eq=False)
class StoredOrder(torch.utils.data.IterableDataset[WorkerBatch]):
    """Chunks of this process's rows in stored order; worker w of W decodes the chunks w, w + W, ..."""

    source: ImageSource
    decoder: Decoder
    chunk_size: int
    rank: int
    world_size: int
    whole_batches: bool
    limit: int | None
    skip: int

    def __iter__(self) -> Iterator[WorkerBatch]:
        for rows, records, labels in self._streamed_chunks() if self.source.streaming else self._indexed_chunks():
            yield decode_rows(self.source, self.decoder, rows, records, labels, self.skip)

    def _indexed_chunks(self) -> Iterator[tuple[list[int], list[Any], list[int]]]:
        info = torch.utils.data.get_worker_info()
        worker, num_workers = (0, 1) if info is None else (info.id, info.num_workers)
        count = len(self.source.dataset) if self.limit is None else min(self.limit, len(self.source.dataset))
        my_rows, my_chunks = self._slices
        rows = list(range(count)[my_rows])
        chunks = [rows[i : i + self.chunk_size] for i in range(0, len(rows), self.chunk_size)][my_chunks]
        for chunk in chunks[worker::num_workers]:
            yield chunk, *read_rows(self.source, chunk)

    def _streamed_chunks(self) -> Iterator[tuple[list[int], list[Any], list[int]]]:
        my_rows, my_chunks = self._slices
        every = islice(read_stream(self.source, self.source.dataset), self.limit)
        mine = islice(every, my_rows.start, None, my_rows.step)
        chunks = iter(lambda: list(islice(mine, self.chunk_size)), [])
        for chunk in islice(chunks, my_chunks.start, None, my_chunks.step):
            rows, records, labels = zip(*chunk, strict=True)
            yield list(rows), list(records), list(labels)

    @property
    def _slices(self) -> tuple[slice, slice]:
        """This process's rows, before they are divided into chunks, and its chunks of these."""
        every, mine = slice(0, None, 1), slice(self.rank, None, self.world_size)
        return (every, mine) if self.whole_batches else (mine, every)


def _full_batches(chunks: Any, batch_size: int | None, source: ImageSource, counts: Counter[str]) -> Iterator[Batch]:
    """Join chunks, which lack unreadable images, to batches of `batch_size`; with `None` leave them as they are."""
    kept: Batch | None = None
    found, read = False, False
    for item in chunks:
        stopping.check()
        read = True
        counts.update(item.counts)
        if not len(item.batch.images):
            continue
        found = True
        kept = item.batch if kept is None else _concatenate(kept, item.batch)
        size = len(kept.images) if batch_size is None else batch_size
        if len(kept.images) >= size:
            yield _slice(kept, slice(0, size))
            kept = _slice(kept, slice(size, None)) if len(kept.images) > size else None
    if kept is not None:
        yield kept
    if read and not found:
        raise ValueError(f"{source.description}: none of its images can be read ({dict(counts)}).")


def _concatenate(first: Batch, second: Batch) -> Batch:
    labels = None if first.labels is None or second.labels is None else torch.cat([first.labels, second.labels])
    return Batch(torch.cat([first.images, second.images]), torch.cat([first.positions, second.positions]), labels)


def _slice(batch: Batch, part: slice) -> Batch:
    return Batch(batch.images[part], batch.positions[part], None if batch.labels is None else batch.labels[part])
