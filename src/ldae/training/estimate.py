"""Estimates of a run's memory and time: before and after its first steps, or in a rehearsal that writes nothing."""

import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from tempfile import TemporaryDirectory

from accelerate.utils import broadcast_object_list

from ldae import stopping
from ldae.data import Batch
from ldae.data.loader import PREFETCHED_BATCHES
from ldae.processes import make_accelerator
from ldae.training.loop import Callback, Run
from ldae.training.memory import MemoryEstimate, estimate_memory
from ldae.training.progress import describe_bytes, describe_count, describe_seconds, peak_memory_gib
from ldae.training.run_folder import RunFolder
from ldae.training.task import Task


LARGE_ON_CPU = 20_000_000  # weights that train
SHORTEST, LONGEST = 4.0, 30.0  # seconds over which steps are timed


class StepTimer:
    """Timer of steps of equal length: without the first, and the `prepared` ones whose batches lay ready."""

    def __init__(self, prepared: int):
        self.prepared = prepared
        self._times = [time.perf_counter()]  # the start, and the end of each step

    def count(self, at_once: bool = False) -> float | None:
        """Count a step that has just ended. Return the seconds of a step once they are known, or `at_once`."""
        self._times.append(time.perf_counter())
        last = len(self._times) - 1
        first = min(1 + self.prepared, last // 2)
        elapsed = self._times[last] - self._times[first]
        waited_long = self._times[last] - self._times[0] >= LONGEST
        if at_once or (last > 1 and waited_long) or (last >= self.prepared + 3 and elapsed >= SHORTEST):
            return elapsed / (last - first)
        return None


class Estimate(Callback):
    """Tells the memory that a run needs before its first step, and its time after the first ones."""

    timer: StepTimer | None

    def start(self, run: Run) -> None:
        """Estimate the memory, and warn if it will not suffice or a large network is on a CPU."""
        memory = estimate_memory(run)
        if memory is not None:
            run.say(str(memory))
        for warning in resource_warnings(run, memory):
            run.warn(warning)
        self.timer = StepTimer(PREFETCHED_BATCHES * run.task.recipe.data.num_workers // run.accumulation)

    def after_step(self, run: Run) -> None:
        """Tell the time of a step and of the run, once enough steps have been timed."""
        if self.timer is None or run.at_end:
            return
        seconds = self.timer.count()
        if seconds is not None:
            run.say(describe_time(seconds, (run.end - run.images_seen) // run.options.total_batch_size))
            self.timer = None


def describe_time(seconds_per_step: float, steps: int) -> str:
    """Describe the time of some steps and the peak memory."""
    step = f"{1000 * seconds_per_step:.0f} ms" if seconds_per_step < 1 else f"{seconds_per_step:.1f} s"
    whole = describe_seconds(seconds_per_step * steps)
    return (
        f"Time: {step} a step, about {whole} for {describe_count(steps, 'step')}, without probes and pictures; peak "
        f"memory {describe_bytes(peak_memory_gib() * 2**30)}"
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
        fitting = memory.fitting_micro_batch(run.micro_batch_size * run.accumulation)
        remedy = f"give --micro_batch_size {fitting}, which changes no result"
        warnings.append(
            f"the first step needs about {describe_bytes(memory.missing)} more, and {describe_bytes(memory.free)} "
            f"are free; {'choose a smaller network' if fitting is None else remedy}."
        )
    return warnings


@dataclass(frozen=True)
class Rehearsal:
    """Measurements of a rehearsal."""

    seconds_per_step: float  # with reading its images
    steps: int  # of the whole budget
    waited: float  # share of the time that the later half of the measured steps waited for images

    @property
    def seconds(self) -> float:
        """Time of the whole budget."""
        return self.seconds_per_step * self.steps


def rehearse(task: Task, batches: Iterable[Batch] | None = None) -> Rehearsal:
    """Open a task's images, build its module, take its first steps and print the estimate; nothing is kept.

    A latent tokenizer that would have to be fitted or trained first is fitted on a few images or left untrained, which
    takes as long in a step. A folder that the recipe names is compared with the recipe and left as it is.

    Args:
        task ([`Task`]): What would be trained.
        batches (`Iterable[Batch]`, *optional*): Endless micro-batches to take the steps with, in place of the task's.

    Raises:
        ValueError: If the recipe does not fit this machine or this data.
        RunError: If the folder holds a run of another recipe, or a loss is not finite.
    """
    options, estimate = task.options, Estimate()
    if options.output_dir is not None:
        RunFolder(options.output_dir).check_recipe(task.recipe)
    task.rehearsing = True
    accelerator = make_accelerator(mixed_precision=options.mixed_precision)
    accelerator.print(f"Dry run of {task.activity}: nothing is written.")
    with stopping.handling(task.activity), TemporaryDirectory() as folder:
        run = Run(task, options, RunFolder(folder), [estimate], accelerator)
        own = run.start()
        chosen = own if batches is None else iter(batches)
        assert estimate.timer is not None
        run.bar.leave = False
        with run.bar, closing(run.loader):
            seconds, passed = None, []
            while seconds is None:
                stopping.check()
                if run.step(chosen):
                    passed.append((run.watch.waited, time.perf_counter()))
                    (seconds,) = broadcast_object_list([estimate.timer.count(at_once=run.at_end)])
    run.say(describe_time(seconds, options.steps))
    half = passed[(len(passed) - 1) // 2]
    waited, elapsed = (end - start for start, end in zip(half, passed[-1], strict=True))
    return Rehearsal(seconds, options.steps, waited / elapsed if elapsed else 0.0)
