"""Timing and the progress bar of a run."""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TextIO

import torch
from tqdm.auto import tqdm

from ldae.data import Batch


class Stopwatch:
    """Timer of a run between two lines of its log: images, and time spent waiting for data."""

    def __init__(self) -> None:
        self.started = time.perf_counter()
        self.waited = 0.0
        self.images = 0

    def next(self, batches: Iterator[Batch]) -> Batch:
        """Return the next batch, and count the time spent waiting for it."""
        waiting = time.perf_counter()
        batch = next(batches)
        self.waited += time.perf_counter() - waiting
        return batch

    def lap(self) -> dict[str, float]:
        """Return images per second, share of time spent waiting for data and peak memory, and start a new lap."""
        elapsed = time.perf_counter() - self.started
        lap = {
            "images_per_second": round(self.images / elapsed, 2),
            "data_wait": round(self.waited / elapsed, 4),
            "peak_memory_gib": round(peak_memory_gib(), 3),
        }
        self.__init__()  # type: ignore[misc]
        return lap


def peak_memory_gib() -> float:
    """Return the peak memory in GiB, of the accelerator or, without one, of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    with suppress(OSError, IndexError):  # Linux, where getrusage may give the peak of a larger parent
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.partition("VmHWM:")[2].split()[0]) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def hardware() -> str:
    """Describe the machine, for metrics and cards."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    return f"CPU, {describe_count(torch.get_num_threads(), 'thread')}"


def describe_count(count: int, noun: str) -> str:
    """Write a number of things.

    Example:
    ```python
    >>> from ldae.training.progress import describe_count
    >>> describe_count(1, "process"), describe_count(2, "process"), describe_count(2188, "step")
    ('1 process', '2 processes', '2,188 steps')

    ```
    """
    ending = "" if count == 1 else "es" if noun.endswith("s") else "s"
    return f"{count:,} {noun}{ending}"


def describe_seconds(seconds: float) -> str:
    """Describe a duration in words.

    Example:
    ```python
    >>> from ldae.training.progress import describe_seconds
    >>> describe_seconds(40), describe_seconds(600), describe_seconds(9000)
    ('40 s', '10 min', '2.5 h')

    ```
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def describe_bytes(count: float) -> str:
    """Describe a size of memory in words.

    Example:
    ```python
    >>> from ldae.training.progress import describe_bytes
    >>> describe_bytes(3 * 2**29), describe_bytes(2**27)
    ('1.5 GiB', '128 MiB')

    ```
    """
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def print_line(text: str, file: TextIO | None = None) -> None:
    """Print a line above the progress bar at once, by default on stdout."""
    file = file or sys.stdout
    tqdm.write(text, file=file)
    file.flush()


def progress_bar(images: int | None, seen: int, shown: bool, activity: str) -> tqdm:
    """Return a bar over images; into a file or a pipe it is written every half minute."""
    interval = 0.5 if sys.stderr.isatty() else 30.0
    return tqdm(
        total=images,
        initial=seen,
        unit="img",
        unit_scale=True,
        desc=activity,
        mininterval=interval,
        maxinterval=interval,
        delay=1.0,  # a shorter run shows no bar
        disable=not shown,
    )
