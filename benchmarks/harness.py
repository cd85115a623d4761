"""Compare two callables in one process, in interleaved pairs, so that a slow machine slows down both.

Also the random images that several benchmarks read.
"""

import io
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image


@dataclass(frozen=True)
class Comparison:
    """A measured comparison. A ratio is peer_time / ours_time: above 1, ours is faster.

    Attributes:
        name (`str`): What was compared.
        ratios (`tuple[float, ...]`): One for each pair.
        median, low, high (`float`): The median ratio and its distribution-free interval of at least 95 %.
        ours_seconds, peer_seconds (`float`): Median time of one call.
        threads (`int`): torch's threads, the same for both.
        target (`float`, *optional*): Ratio to reach.
    """

    name: str
    ratios: tuple[float, ...]
    median: float
    low: float
    high: float
    ours_seconds: float
    peer_seconds: float
    threads: int
    target: float | None = None

    @property
    def reached(self) -> bool:
        """True if the interval reaches the target, or if there is none."""
        return self.target is None or self.high >= self.target

    def __str__(self) -> str:
        line = (
            f"{self.name}: {self.median:.2f}x [{self.low:.2f}, {self.high:.2f}] of {len(self.ratios)} pairs; "
            f"ours {1e3 * self.ours_seconds:.1f} ms, peer {1e3 * self.peer_seconds:.1f} ms, threads {self.threads}"
        )
        if self.target is None:
            return line
        return f"{line}; target {self.target:.2f}x {'reached' if self.reached else 'MISSED'}"


def compare(
    name: str,
    ours: Callable[[], Any],
    peer: Callable[[], Any],
    *,
    pairs: int = 15,
    target: float | None = None,
    min_seconds: float = 0.05,
) -> Comparison:
    """Time two callables in turn, and print one line.

    Args:
        name (`str`): What is compared.
        ours, peer (`Callable[[], Any]`): Do the same work once each; their return values are dropped.
        pairs (`int`, defaults to 15): Timed pairs, after two untimed calls of each. The order changes with each pair.
        target (`float`, *optional*): Ratio to reach; the line then says whether the interval does.
        min_seconds (`float`, defaults to 0.05): Shorter callables are called several times in a row, both alike.

    Returns:
        [`Comparison`].

    Raises:
        ValueError: For fewer than 6 pairs, which give no 95 % interval of the median.
    """
    if pairs < 6:
        raise ValueError(f"pairs={pairs} is too few: a 95 % interval of the median needs 6 or more.")
    for warm_up in (ours, peer):  # the first call compiles and allocates; the second is like the others
        warm_up()
    shortest = min(seconds_per_call(ours, 1), seconds_per_call(peer, 1))
    calls = max(1, math.ceil(min_seconds / max(shortest, 1e-9)))
    times = []
    for pair in range(pairs):
        if pair % 2:
            peer_seconds, ours_seconds = seconds_per_call(peer, calls), seconds_per_call(ours, calls)
        else:
            ours_seconds, peer_seconds = seconds_per_call(ours, calls), seconds_per_call(peer, calls)
        times.append((ours_seconds, peer_seconds))
    ratios = tuple(peer_seconds / ours_seconds for ours_seconds, peer_seconds in times)
    low, high = median_interval(ratios)
    result = Comparison(
        name=name,
        ratios=ratios,
        median=statistics.median(ratios),
        low=low,
        high=high,
        ours_seconds=statistics.median(seconds for seconds, _ in times),
        peer_seconds=statistics.median(seconds for _, seconds in times),
        threads=torch.get_num_threads(),
        target=target,
    )
    print(result, flush=True)
    return result


def median_interval(values: tuple[float, ...], confidence: float = 0.95) -> tuple[float, float]:
    """Return the narrowest symmetric pair of order statistics that holds the median with this confidence."""
    ordered, n = sorted(values), len(values)
    rank, outside = 0, 2 * 0.5**n  # outside: chance that the median is beyond ordered[rank] or ordered[n - 1 - rank]
    while rank + 1 < n - 1 - rank and outside + 2 * math.comb(n, rank + 1) * 0.5**n <= 1 - confidence:
        rank += 1
        outside += 2 * math.comb(n, rank) * 0.5**n
    return ordered[rank], ordered[n - 1 - rank]


def seconds_per_call(call: Callable[[], Any], calls: int) -> float:
    """Return the seconds per call of so many calls in a row, including work that still runs on an accelerator."""
    _synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        call()
    _synchronize()
    return (time.perf_counter() - start) / calls


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def write_random_parquet(
    folder: Path, shards: int = 4, rows: int = 512, side: int = 32, rows_per_group: int = 128
) -> Path:
    """Write shards of random PNG images, which compress and decode worse than real ones."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for shard in range(shards):
        images = []
        for pixels in generator.integers(0, 256, (rows, side, side, 3), dtype=np.uint8):
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "PNG")
            images.append({"bytes": file.getvalue(), "path": None})
        column = pa.array(images, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
        path = folder / f"train-{shard:05d}-of-{shards:05d}.parquet"
        pq.write_table(pa.table({"image": column}), path, row_group_size=rows_per_group)
    return folder
