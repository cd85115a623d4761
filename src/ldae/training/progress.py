"""What a run shows while it goes: a progress bar, lines of numbers, a clean stop on a signal."""

import resource
import signal
import sys
import time
from collections.abc import Iterator
from types import FrameType, TracebackType

import torch
from tqdm.auto import tqdm

from ldae.data import Batch


class StopSignal:
    """While entered, SIGTERM and SIGINT set `received` instead of ending the process; a second SIGINT ends it."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopSignal":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.received is not None:
            raise KeyboardInterrupt
        self.received = number


class Stopwatch:
    """Splits a run's time into waiting for data and the rest, between two lines of the log."""

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
        """Images a second, share of the time spent waiting for data, and peak memory; begins a new lap."""
        elapsed = time.perf_counter() - self.started
        lap = {
            "images_per_second": round(self.images / elapsed, 2),
            "data_wait": round(self.waited / elapsed, 4),
            "peak_memory_gib": round(peak_memory_gib(), 3),
        }
        self.__init__()  # type: ignore[misc]
        return lap


def peak_memory_gib() -> float:
    """Peak memory in GiB: of the accelerator where there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def hardware() -> str:
    """The machine in words, for metrics and cards."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    return f"CPU, {torch.get_num_threads()} threads"


def progress_bar(images: int | None, seen: int, shown: bool, activity: str) -> tqdm:
    """A bar over images; on a file or a pipe it moves every half minute only."""
    interval = 0.5 if sys.stderr.isatty() else 30.0
    return tqdm(
        total=images,
        initial=seen,
        unit="img",
        unit_scale=True,
        desc=activity,
        mininterval=interval,
        maxinterval=interval,
        delay=1.0,  # what takes less is not shown
        disable=not shown,
    )
