"""The order of a run over data sets that can be read in any order.

Everything here is a pure function of (seed, position), so that processes, micro-batches, workers and restarts change
nothing.
"""

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch.utils.data

from .batch import CachedLatents, Decoder, WorkerBatch, make_batch
from .rows import read_rows
from .sources import ImageSource


def micro_steps_per_step(micro_batch_size: int, total_batch_size: int, world_size: int) -> int:
    """Divide an optimiser step into micro-batches of each process.

    Raises:
        ValueError: If `total_batch_size` is no multiple of `micro_batch_size * world_size`.
    """
    if min(micro_batch_size, total_batch_size, world_size) < 1:
        raise ValueError(
            f"micro_batch_size={micro_batch_size}, total_batch_size={total_batch_size} and world_size={world_size} "
            "must all be at least 1."
        )
    if total_batch_size % (micro_batch_size * world_size):
        raise ValueError(
            f"total_batch_size={total_batch_size} must be a multiple of micro_batch_size={micro_batch_size} times "
            f"world_size={world_size}; change one of them."
        )
    return total_batch_size // (micro_batch_size * world_size)


def run_positions(number: int, *, first: int, micro_batch_size: int, rank: int, world_size: int) -> np.ndarray:
    """Compute a micro-batch's positions `(b,)` in the run: `first + (number * world + rank) * b + [0, b)`.

    Micro-batches are numbered through over the steps, from the one that begins at position `first`.
    """
    begin = first + (number * world_size + rank) * micro_batch_size
    return np.arange(begin, begin + micro_batch_size, dtype=np.int64)


@lru_cache(maxsize=2)  # a micro-batch may extend over the end of an epoch
def epoch_order(num_examples: int, seed: int, epoch: int) -> np.ndarray:
    """Draw the permutation of the rows in which an epoch reads them."""
    return np.random.default_rng((seed, epoch)).permutation(num_examples)


@dataclass(eq=False)
class ShuffledExamples(torch.utils.data.Dataset[WorkerBatch]):
    """The examples of a run by position: epoch `p // n`, row `epoch_order[p % n]`.

    An unreadable image is replaced by the next readable one of the same epoch's order. Conversions and skips are
    counted in the first epoch only, so that each image counts once.
    """

    source: ImageSource
    decoder: Decoder | CachedLatents
    seed: int

    def __getitem__(self, positions: list[int]) -> WorkerBatch:
        counts: Counter[str] = Counter()
        repeated: Counter[str] = Counter()  # from later epochs, and from replacements
        num_examples = len(self.source.dataset)
        records, labels = read_rows(self.source, [self._row(position, 0) for position in positions])
        images: list[np.ndarray] = []
        for i, position in enumerate(positions):
            pixels = self.decoder(records[i], counts if position < num_examples else repeated, position)
            tried = 0
            while pixels is None:
                tried += 1
                if tried == num_examples:
                    raise ValueError(f"{self.source.description}: none of the {num_examples:,} images can be read.")
                (record,), (label,) = read_rows(self.source, [self._row(position, tried)])
                pixels, labels[i] = self.decoder(record, repeated, position), label
            images.append(pixels)
        batch = make_batch(images, positions, labels if self.source.label_column is not None else None)
        return WorkerBatch(batch, counts)

    def _row(self, position: int, tried: int) -> int:
        num_examples = len(self.source.dataset)
        epoch, place = divmod(position, num_examples)
        return int(epoch_order(num_examples, self.seed, epoch)[(place + tried) % num_examples])
