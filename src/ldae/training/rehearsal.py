"""Rehearsals: the first steps of a run, measured, without writing anything."""

import time
from collections.abc import Iterable
from contextlib import closing
from dataclasses import dataclass
from tempfile import TemporaryDirectory

from accelerate.utils import broadcast_object_list

from ldae import stopping
from ldae.data import Batch
from ldae.processes import make_accelerator
from ldae.training.estimate import Estimate
from ldae.training.loop import Run
from ldae.training.progress import peak_memory_gib
from ldae.training.run_folder import RunFolder
from ldae.training.task import Task


@dataclass(frozen=True)
class Rehearsal:
    """Measurements of a rehearsal.

    Args:
        seconds_per_step: Time of an optimizer step, with reading its images.
        steps: Steps of the whole budget.
        weights: Number of weights that train.
        peak_memory_gib: Peak memory so far, of the accelerator or of the process.
        waited: Share of the time that the later half of the steps waited for images.
    """

    seconds_per_step: float
    steps: int
    weights: int
    peak_memory_gib: float
    waited: float

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

    Returns:
        [`Rehearsal`].

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
        run.bar.leave = False
        with run.bar, closing(run.loader):
            seconds, passed = None, []
            while seconds is None:
                stopping.check()
                if run.step(chosen):
                    passed.append((run.watch.waited, time.perf_counter()))
                    (seconds,) = broadcast_object_list([estimate.measure(run, at_once=run.at_end)])
    estimate.seconds_per_step = seconds
    run.say(estimate.describe(options.steps))
    weights = sum(parameter.numel() for parameter in run.state.trained.values())
    half = passed[(len(passed) - 1) // 2]
    waited, elapsed = (end - start for start, end in zip(half, passed[-1], strict=True))
    return Rehearsal(seconds, options.steps, weights, peak_memory_gib(), waited / elapsed if elapsed else 0.0)
