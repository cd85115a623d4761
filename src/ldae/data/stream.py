"""Streamed data sets: divided over processes and workers, shuffled without a buffer, resumed exactly.

The order is made of two permutations: of the shards, keyed on (seed, epoch), and of the undecoded rows inside a
window, keyed on (seed, epoch, first row of the window). Four integers therefore describe a worker's progress, and
continuing from them reads one window again and decodes nothing twice. (The content of a shuffle buffer would be lost.)
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import torch.utils.data

from .batch import Decoder, WorkerBatch, make_batch, make_labels
from .order import run_positions
from .sources import ROWS_PER_READ, ImageSource


FIRST_STATE = {"epoch": 0, "shard": 0, "row": 0, "taken": 0}


def read_stream(source: ImageSource, rows: Any, first: int = 0) -> Iterator[tuple[int, Any, int]]:
    """Yield index, undecoded record and label of each row of a streamed source, or a part of it, from `first` on."""
    index = 0
    for columns in rows.iter(batch_size=ROWS_PER_READ):
        records = columns[source.image_column]
        if index + len(records) > first:
            has_labels = source.label_column is not None
            labels = make_labels(columns[source.label_column]) if has_labels else [-1] * len(records)
            for i in range(max(first - index, 0), len(records)):
                yield index + i, records[i], labels[i]
        index += len(records)


@dataclass(frozen=True)
class StreamPart:
    """The rows of one worker of one process.

    If the number of shards is a multiple of the number of processes, each process reads whole shards; otherwise all
    read the same shards and keep every `world_size`-th row. A process's shards are divided among its workers. The
    shards are shuffled first, so a worker gets others in each epoch; within an epoch every row is read exactly once.
    """

    source: ImageSource
    seed: int  # of the order
    window_size: int  # number of undecoded rows that are shuffled at a time
    rank: int
    world_size: int
    worker: int
    num_workers: int  # of each process

    @property
    def by_shards(self) -> bool:
        """Each process reads whole shards."""
        return self.source.dataset.num_shards % self.world_size == 0

    def shards(self, epoch: int) -> list[int]:
        """List the shards that this worker reads in an epoch, in order."""
        order = np.random.default_rng((self.seed, epoch)).permutation(self.source.dataset.num_shards)
        if self.by_shards:
            order = order[self.rank :: self.world_size]
        return order[self.worker :: self.num_workers].tolist()

    def windows(self, epoch: int, shard: int, row: int) -> Iterator[tuple[int, int, list[tuple[Any, int]]]]:
        """Yield an epoch's shuffled windows, beginning with row `row` of the worker's `shard`-th shard.

        Each comes with its first shard and row, and holds undecoded (record, label) pairs. Windows extend over shards;
        the last of an epoch is smaller.
        """
        window: list[tuple[Any, int]] = []
        begin, key, by_shards = (shard, row), (0, 0), self.by_shards
        for place, number in list(enumerate(self.shards(epoch)))[shard:]:
            rows = self.source.dataset.shard(self.source.dataset.num_shards, number)
            for index, record, label in read_stream(self.source, rows, row if place == shard else 0):
                if not by_shards and (index + number) % self.world_size != self.rank:
                    continue
                if len(window) == self.window_size:
                    yield *begin, self._shuffled(window, epoch, key)
                    window = []
                if not window:
                    begin, key = (place, index), (number, index)
                window.append((record, label))
        if window:
            yield *begin, self._shuffled(window, epoch, key)

    def _shuffled(self, window: list[Any], epoch: int, key: tuple[int, int]) -> list[Any]:
        order = np.random.default_rng((self.seed, epoch, *key)).permutation(len(window))
        return [window[i] for i in order]


@dataclass(eq=False)
class ShuffledStream(torch.utils.data.IterableDataset[WorkerBatch]):
    """Endless micro-batches of a streamed source; each carries the state of its worker after it."""

    source: ImageSource
    decoder: Decoder
    seed: int
    window_size: int
    num_workers: int
    states: list[dict[str, int]]  # in which each worker begins
    next_worker: int  # makes the first batch; torch's loader asks its workers in turn, beginning with its first
    start_number: int  # number of the first batch
    layout: dict[str, int]  # further arguments of run_positions

    def __iter__(self) -> Iterator[WorkerBatch]:
        info = torch.utils.data.get_worker_info()
        turn = 0 if info is None else info.id
        worker = (turn + self.next_worker) % self.num_workers
        rank, world_size = self.layout["rank"], self.layout["world_size"]
        part = StreamPart(self.source, self.seed, self.window_size, rank, world_size, worker, self.num_workers)
        # Worker w of W makes the batches w, w + W, ...; each readable image takes the next of their positions.
        numbers = count(self.start_number + turn, self.num_workers)
        places = (place for number in numbers for place in run_positions(number, **self.layout).tolist())
        positions: list[int] = []
        images: list[np.ndarray] = []
        labels: list[int] = []
        counts: Counter[str] = Counter()
        for position, pixels, label, state, noted in self._examples(part, self.states[worker], places):
            counts.update(noted)
            positions.append(position)
            images.append(pixels)
            labels.append(label)
            if len(images) == self.layout["micro_batch_size"]:
                batch = make_batch(images, positions, labels if self.source.label_column is not None else None)
                yield WorkerBatch(batch, counts, worker, state)
                positions, images, labels, counts = [], [], [], Counter()

    def _examples(
        self, part: StreamPart, state: dict[str, int], places: Iterator[int]
    ) -> Iterator[tuple[int, np.ndarray, int, dict[str, int], Counter[str]]]:
        """Yield readable examples without end.

        Each is a position, pixels, a label, the worker's state after it, and the counts since the last example.
        """
        position = next(places)
        epoch, shard, row, taken = (state[key] for key in FIRST_STATE)
        counts: Counter[str] = Counter()
        repeated: Counter[str] = Counter()  # later epochs meet the same images again
        found = (shard, row, taken) != (0, 0, 0)  # a state within an epoch was made by a readable image of it
        while True:
            for begin_shard, begin_row, window in part.windows(epoch, shard, row):
                for i in range(taken, len(window)):
                    record, label = window[i]
                    pixels = self.decoder(record, counts if epoch == 0 else repeated, position)
                    if pixels is None:
                        continue
                    found = True
                    after = {"epoch": epoch, "shard": begin_shard, "row": begin_row, "taken": i + 1}
                    yield position, pixels, label, after, counts
                    position, counts = next(places), Counter()
                taken = 0
            if not found:
                raise ValueError(
                    f"{self.source.description}: process {part.rank}, worker {part.worker} found no readable image in "
                    f"epoch {epoch} (shards {part.shards(epoch)}); check the files, or use fewer workers."
                )
            epoch, shard, row, taken, found = epoch + 1, 0, 0, 0, False
