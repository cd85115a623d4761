"""Estimates of a run's memory, before its first step, and of its time, after the first ones."""

import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from ldae.data import Batch
from ldae.data.loader import PREFETCHED_BATCHES
from ldae.training.loop import Callback, Run
from ldae.training.progress import describe_bytes, describe_seconds, peak_memory_gib
from ldae.training.step_memory import count_step_bytes
from ldae.training.task import Task, batch_statistics


GIB = 2**30
LARGE_ON_CPU = 20_000_000  # weights that train
SHORTEST, LONGEST = 4.0, 30.0  # seconds over which steps are timed
CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class MemoryEstimate:
    """Memory that a process of a run needs at its peak, in bytes.

    Args:
        held: What is in use before the first step: the weights, and without an accelerator the whole process.
        optimizer: Gradients, and the two moments of AdamW.
        fixed: What a step takes whatever its batch, such as weights in bfloat16.
        per_image: Activations of one image at the peak of forward and backward pass.
        micro_batch_size: Images in one forward.
        free: Memory that is free on the device.
    """

    held: int
    optimizer: int
    fixed: int
    per_image: int
    micro_batch_size: int
    free: int

    @property
    def missing(self) -> int:
        """Memory that the first step adds to `held`."""
        return self.optimizer + self.fixed + self.per_image * self.micro_batch_size

    @property
    def fits(self) -> bool:
        """True if there is enough free memory."""
        return self.missing <= self.free

    def fitting_micro_batch(self, share: int) -> int | None:
        """Return the largest divisor of a process's share of the batch that fits, or `None` if none does."""
        room = self.free - self.optimizer - self.fixed
        sizes = (size for size in range(min(share, self.micro_batch_size), 0, -1) if share % size == 0)
        return next((size for size in sizes if size * self.per_image <= room), None)

    def __str__(self) -> str:
        activations = self.per_image * self.micro_batch_size
        return (
            f"Memory: about {describe_bytes(self.held + self.missing)}, of which {describe_bytes(activations)} are "
            f"activations of {self.micro_batch_size:,} images; {describe_bytes(self.free)} are free"
        )


class StepTimer:
    """Timer of steps of equal length. The first is left out, and so are those whose batches lay ready.

    Args:
        prepared (`int`): Steps whose batches the loader's workers prepare ahead.
    """

    def __init__(self, prepared: int):
        self.prepared = prepared
        self._times = [time.perf_counter()]  # the start, and the end of each step

    def count(self, at_once: bool = False) -> float | None:
        """Count a step that has just ended, and return the seconds of a step once they are known.

        Args:
            at_once (`bool`): Whether to return them with as few steps as there are.
        """
        self._times.append(time.perf_counter())
        last = len(self._times) - 1
        first = min(1 + self.prepared, last // 2)
        elapsed = self._times[last] - self._times[first]
        waited_long = self._times[last] - self._times[0] >= LONGEST
        if at_once or (last > 1 and waited_long) or (last >= self.prepared + 3 and elapsed >= SHORTEST):
            return elapsed / (last - first)
        return None


class Estimate(Callback):
    """Tells the memory that a run needs before its first step, and its time after the first ones.

    Attributes:
        seconds_per_step (`float`, *optional*): Time of a step, once it was measured.
    """

    def __init__(self) -> None:
        self.seconds_per_step: float | None = None

    def start(self, run: Run) -> None:
        """Estimate the memory, and warn if it will not suffice or a large network is on a CPU."""
        memory = estimate_memory(run)
        if memory is not None:
            run.say(str(memory))
        for warning in resource_warnings(run, memory):
            run.warn(warning)
        self._timer = StepTimer(PREFETCHED_BATCHES * run.task.recipe.data.num_workers // run.accumulation)

    def after_step(self, run: Run) -> None:
        """Tell the time of a step and of the run, once enough steps have been timed."""
        if self.seconds_per_step is None and not run.at_end and self.measure(run) is not None:
            run.say(self.describe((run.end - run.images_seen) // run.options.total_batch_size))

    def measure(self, run: Run, at_once: bool = False) -> float | None:
        """Count a step, and return the time of a step once it is known; see [`StepTimer`]."""
        self.seconds_per_step = self._timer.count(at_once)
        return self.seconds_per_step

    def describe(self, steps: int) -> str:
        """Describe the time of some steps and the peak memory; only once the time of a step is known."""
        assert self.seconds_per_step is not None
        step = self.seconds_per_step
        time_of_step = f"{1000 * step:.0f} ms" if step < 1 else f"{step:.1f} s"
        return (
            f"Time: {time_of_step} a step, about {describe_seconds(step * steps)} for {steps:,} steps, without probes "
            f"and pictures; peak memory {describe_bytes(peak_memory_gib() * GIB)}"
        )


def resource_warnings(run: Run, memory: MemoryEstimate | None) -> list[str]:
    """List what this machine lacks for a run, a line each."""
    warnings = []
    weights = sum(parameter.numel() for parameter in run.state.trained.values())
    if run.device.type == "cpu" and weights > LARGE_ON_CPU:
        warnings.append(
            f"{weights / 1e6:.0f} M weights train on a CPU, which takes days for most budgets; choose a smaller "
            "network (--size nano or tiny for an l-DAE) or a machine with a GPU."
        )
    if memory is not None and not memory.fits:
        share = run.micro_batch_size * run.accumulation
        fitting = memory.fitting_micro_batch(share)
        remedy = (
            "choose a smaller network"
            if fitting is None
            else f"give --micro_batch_size {fitting}, which changes no result"
        )
        warnings.append(
            f"the first step needs about {describe_bytes(memory.missing)} more, and {describe_bytes(memory.free)} "
            f"are free; {remedy}."
        )
    return warnings


def estimate_memory(run: Run) -> MemoryEstimate | None:
    """Estimate the memory of a run from two small steps; `None` for sharded weights."""
    if run.device.type not in ("cpu", "cuda") or run.state.sharded:
        return None
    held = torch.cuda.memory_allocated(run.device) if run.device.type == "cuda" else psutil.Process().memory_info().rss
    free, statistics = free_memory(run.device), batch_statistics(run.task.module)
    with run.accelerator.no_sync(run.task.network):
        fixed, per_image = count_step_bytes(run.task.module, lambda count: blank_loss(run.task, count, run.device))
    for buffer, before in statistics:
        buffer.copy_(before)
    trained = sum(parameter.numel() * parameter.element_size() for parameter in run.state.trained.values())
    return MemoryEstimate(held, 3 * trained, fixed, per_image, run.micro_batch_size, free)


def free_memory(device: torch.device) -> int:
    """Return the free memory of a device in bytes; of the CPU also within the limit of a container."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = [psutil.virtual_memory().available]
    for limit, usage in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with suppress(OSError, ValueError):  # there is no such file, or it says "max"
            free.append(int((CGROUP / limit).read_text()) - int((CGROUP / usage).read_text()))
    return max(0, min(free))


def blank_loss(task: Task, count: int, device: torch.device | str) -> torch.Tensor:
    """Compute a task's loss of some black images, or of latents that are zero."""
    positions = torch.arange(count)
    return task.loss(_blank_batch(task, positions), positions.to(device))


def _blank_batch(task: Task, positions: torch.Tensor) -> Batch:
    count = len(positions)
    config: Any = task.config
    data = task.recipe.data
    labels = torch.zeros(count, dtype=torch.int64)
    if task.examples.latent_cache is not None:
        views = 2 if data.horizontal_flip else 1
        latents = torch.zeros(count, views, config.num_patches, config.latent_dim)
        images: Any = None
        return Batch(images, positions, labels, latents)
    side = data.decode_size or config.image_size
    return Batch(torch.zeros(count, config.num_channels, side, side, dtype=torch.uint8), positions, labels)
