"""The training loop, whatever the task: Accelerate, exact resuming, clean stops, a log."""

import math
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from ldae import stopping
from ldae.data import Batch, ImageLoader, check_disjoint, describe_counts
from ldae.errors import RunError
from ldae.processes import make_accelerator
from ldae.sections import TrainingConfig
from ldae.training.budget import budget_warnings, learning_rate
from ldae.training.checkpoint import Checkpoint, latest_checkpoint, load_newest, save_checkpoint
from ldae.training.progress import Stopwatch, describe_count, hardware, print_line, progress_bar
from ldae.training.run_folder import RunFolder
from ldae.training.state import TrainingState
from ldae.training.task import Task, batch_statistics, open_loader


class Callback:
    """Something that happens beside the training. Every process calls each method of every callback, in order."""

    def start(self, run: "Run") -> None:
        """Prepare, after the module was built and before the first step."""

    def after_step(self, run: "Run") -> None:
        """Act after an optimizer step; `run.due(every)` tells whether an interval has passed."""

    def log(self, run: "Run", record: dict[str, Any]) -> None:
        """Receive a record that was logged."""

    def saved(self, run: "Run") -> None:
        """Act after a checkpoint was written and the model was exported."""

    def finish(self, run: "Run") -> None:
        """Act after the task has written its result."""


def train(task: Task, options: TrainingConfig, folder: RunFolder, callbacks: Sequence[Callback] = ()) -> None:
    """Train a task to the end of its budget. The same call resumes, and changes nothing once the run is finished.

    Args:
        task ([`Task`]): What is trained.
        options ([`TrainingConfig`]): Budget, optimizer and intervals.
        folder ([`RunFolder`]): The run's folder.
        callbacks (`Sequence[Callback]`): Online probe, Hub, trackers and the like.

    Raises:
        ValueError: If the recipe does not fit this machine or this data.
        RunError: If a loss is not finite, or the folder cannot be used.
        SystemExit: After SIGTERM or SIGINT, once everything is saved.
    """
    folder.check_recipe(task.recipe)
    if folder.finished(options.images):
        print(f"{folder.path} is finished ({options.images:,} images); nothing to do.")
        return
    accelerator = make_accelerator(mixed_precision=options.mixed_precision)
    with stopping.handling(task.activity), folder.held(task.recipe, accelerator):
        _train(Run(task, options, folder, callbacks, accelerator))


def _train(run: "Run") -> None:
    batches, options = run.start(), run.options
    # Several processes agree on a stop between steps: one that left alone would leave the others waiting.
    with run.bar, closing(run.loader), stopping.deferred(run.accelerator.num_processes > 1):
        if run.callbacks_due:
            run.call_back()
        while not run.at_end:
            if run.step(batches):
                if run.due(options.log_every_images):
                    run.log_step()
                run.call_back()
            stop = run.asked_to_stop()
            every = options.checkpoint_every_images or max(1, options.images // 10)
            if run.images_seen > run.images_saved and (stop or run.due(every)):
                run.save()
            if stop and not run.at_end:
                run.say(f"Stopped by a signal; saved at {run.images_saved:,} images. Run the same command to resume.")
                raise stopping.Stopped(128 + (stopping.received() or 0))
    run.finish()


class Run:
    """A task in training: its state, position in the data and log, resumed from the newest sound checkpoint."""

    state: TrainingState
    images_seen: int
    seconds: float  # spent training, over all starts
    loader: ImageLoader
    losses: list[torch.Tensor]  # that have not been logged
    last_step: tuple[int, torch.Tensor, Any, float] | None = None  # images before, loss, gradient norm, learning rate

    def __init__(
        self,
        task: Task,
        options: TrainingConfig,
        folder: RunFolder,
        callbacks: Sequence[Callback],
        accelerator: Accelerator,
    ):
        self.task, self.options, self.folder, self.callbacks = task, options, folder, callbacks
        self.accelerator, self.device, self.is_main = accelerator, accelerator.device, accelerator.is_main_process
        self.end = options.steps * options.total_batch_size  # the budget in whole steps
        self.micro_batch_size, self.accumulation = options.batch_layout(accelerator.num_processes, task.batch_option)
        with accelerator.main_process_first():  # which sets damaged checkpoints aside
            checkpoint = load_newest(folder.checkpoints, self.say)
        task.setup(accelerator, checkpoint)
        self.state = TrainingState(task, options, accelerator)
        self._resume(checkpoint)

    def start(self) -> Iterator[Batch]:
        """Print what is trained, start the callbacks, and return the batches."""
        self.say(f"{self.task.source.description}\n{self.task.describe()}\n{self._describe_batch()}")
        for warning in budget_warnings(self.options, self.task.source.num_examples):
            self.warn(warning)
        for callback in self.callbacks:
            callback.start(self)
        self.watch, self._since = Stopwatch(), time.perf_counter()
        self.bar = progress_bar(self.end, self.images_seen, self.is_main, self.task.activity)
        return self._first_batch_checked(self.loader)

    def step(self, batches: Iterator[Batch]) -> bool:
        """Take one optimizer step: batch, loss, backward, clip, step, average.

        Returns:
            `bool`: False if a signal ended it between two micro-batches, which leaves the run as before the step.
        """
        t, state = self.options, self.state
        statistics = batch_statistics(self.task.module) if self.accumulation > 1 else []
        rate = learning_rate(self.images_seen, t)
        for group in state.optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        loss = torch.zeros((), device=self.device)
        for index in range(self.accumulation):
            if index and self.accelerator.num_processes == 1 and stopping.received():
                for buffer, before in statistics:
                    buffer.copy_(before)
                return False
            batch = self.watch.next(batches)
            positions = batch.positions.to(self.device, non_blocking=True)
            # Dropout draws from torch's generators: seeded by the batch's position, a resumed run draws the same.
            torch.manual_seed(t.seed * 2**32 + int(batch.positions[0]))
            last = index == self.accumulation - 1
            with nullcontext() if last else self.accelerator.no_sync(self.task.network):
                part = self.task.loss(batch, positions) / self.accumulation
                self.accelerator.backward(part)
            loss += part.detach()
        # Without a limit the norm is still logged.
        grad_norm = state.clip(math.inf if t.max_grad_norm is None else t.max_grad_norm)
        state.optimizer.step()
        state.optimizer.zero_grad()
        if state.ema is not None:
            state.ema.step(state.trained.values())

        self._check_finite()  # of the step before, so that an accelerator never waits for the host
        self.last_step = (self.images_seen, loss, grad_norm, rate)
        self.losses.append(loss)
        self.images_seen += t.total_batch_size
        self.watch.images += t.total_batch_size
        self.bar.update(t.total_batch_size)
        self.position = self.loader.state_dict()
        return True

    def call_back(self) -> None:
        """Call the callbacks after a step; if a signal interrupts them, the resumed run calls them again."""
        try:
            for callback in self.callbacks:
                callback.after_step(self)
            self.callbacks_due = False
        except stopping.Stopped:
            self.callbacks_due = True

    def save(self) -> None:
        """Write a checkpoint; before the end also export the current model."""
        self._check_finite()
        if self.is_main:
            self.folder.claim.check()
        self.seconds += time.perf_counter() - self._since
        self._since = time.perf_counter()
        record = {
            "images_seen": self.images_seen,
            "seconds": self.seconds,
            "ranks": gather_object([{"loader": self.position, "losses": [loss.item() for loss in self.losses]}]),
            "ema_steps": self.state.ema.optimization_step if self.state.ema else 0,
        }
        if self.callbacks_due:
            record["callbacks_due"] = True
        parts = self.state.parts()
        if self.is_main or self.state.sharded:
            save_checkpoint(self.folder.checkpoints, parts, record, self.options.keep_checkpoints)
        if not self.at_end:  # at the end, the task's `finish` writes it
            weights = self.state.weights(parts)
            if self.is_main:
                self.task.export(self.folder, weights)
        self.images_saved = self.images_seen
        self.accelerator.wait_for_everyone()
        for callback in self.callbacks:
            callback.saved(self)

    def finish(self) -> None:
        """Let the task write its result, after the last checkpoint."""
        record = {
            "event": "trained",
            "seconds": round(self.seconds, 1),
            "hardware": hardware(),
            "processes": self.accelerator.num_processes,
            "weights": "ema" if self.state.ema else "raw",
            "images_read": describe_counts(self.loader.counts),
        }
        self.log(record)
        self.say(f"Images read: {record['images_read']}")
        self.task.finish(self.folder, self.state.weights())
        for callback in self.callbacks:
            callback.finish(self)
        self.say(f"Finished: {self.folder.path} holds {self.task.product}.")
        if self.is_main:
            self.folder.log({"images": self.images_seen, "event": "finished"})
        self.accelerator.wait_for_everyone()

    # -- used by callbacks --------------------------------------------------------------------------------------------

    @property
    def at_end(self) -> bool:
        """True when the budget is used up."""
        return self.images_seen >= self.end

    def due(self, every: int) -> bool:
        """Return whether the last step reached a multiple of `every` images, or the end."""
        return self.at_end or self.images_seen // every > (self.images_seen - self.options.total_batch_size) // every

    def log(self, record: dict[str, Any]) -> None:
        """Write a line of metrics.jsonl, and pass the record to the callbacks."""
        if self.is_main:
            self.folder.log({"images": self.images_seen, **record})
        for callback in self.callbacks:
            callback.log(self, record)

    def log_step(self) -> None:
        """Log the mean loss since the last line, and the numbers of the last step."""
        self._check_finite()
        assert self.last_step is not None
        _, _, grad_norm, rate = self.last_step
        loss = self.accelerator.reduce(torch.stack(self.losses).mean(), "mean").item()
        self.losses = []
        record: dict[str, Any] = {
            "event": "train",
            "loss": round(loss, 6),
            "grad_norm": round(float(grad_norm), 4),
            "learning_rate": rate,
            **{name: round(value.item(), 6) for name, value in self.task.parts.items()},
            **self.watch.lap(),
        }
        self.log(record)
        shown = {
            "loss": f"{loss:.4f}",
            "img/s": f"{record['images_per_second']:.0f}",
            "wait": f"{record['data_wait']:.0%}",
            "GiB": f"{record['peak_memory_gib']:.1f}",
        }
        self.bar.set_postfix(shown, refresh=False)

    def say(self, text: str) -> None:
        """Print in the main process."""
        if self.is_main:
            print_line(text)

    def warn(self, text: str) -> None:
        """Print a warning on stderr, in the main process."""
        if self.is_main:
            print_line(f"Warning: {self.task.activity}: {text}", sys.stderr)

    def asked_to_stop(self) -> bool:
        """Return whether any process has received a signal; all processes agree at every tenth step."""
        own = stopping.received() is not None
        if self.accelerator.num_processes == 1:
            return own
        if (self.images_seen // self.options.total_batch_size) % 10:
            return False
        anyone = bool(self.accelerator.reduce(torch.tensor(float(own), device=self.device), "sum").item())
        if anyone:
            stopping.request(signal.SIGTERM)  # another process may have received it
        return anyone

    # -- parts --------------------------------------------------------------------------------------------------------

    def _resume(self, checkpoint: Checkpoint | None) -> None:
        """Set the state of a run from a checkpoint, or for a new run."""
        self.images_seen = self.images_saved = checkpoint.images_seen if checkpoint else 0
        self.callbacks_due = bool(checkpoint and checkpoint.state.get("callbacks_due"))
        self.seconds = checkpoint.state["seconds"] if checkpoint else 0.0
        if checkpoint:
            self.state.restore(checkpoint)
            self.say(f"Resuming from {checkpoint.images_seen:,} images.")
        if self.is_main:
            self.folder.forget_after(self.images_seen, self.at_end)  # the run will write those lines again
        # Each process's position in the data, and its losses that have not been logged.
        ranks = checkpoint.state["ranks"] if checkpoint else [{"loader": None, "losses": []}]
        rank = self.accelerator.process_index
        # With more processes than before, the loader checks whether it can resume.
        own = ranks[rank if rank < len(ranks) else 0]
        self.losses = [torch.tensor(loss, device=self.device) for loss in own["losses"]]
        sizes = self.micro_batch_size, self.options.total_batch_size
        place = {"rank": rank, "world_size": self.accelerator.num_processes}
        self.loader = open_loader(self.task.recipe, self.task.examples, *sizes, **place, start=own["loader"])
        self.position = self.loader.state_dict()  # after the last whole step

    def _first_batch_checked(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Check that no two processes read the same images, unless a stream is so short that it begins again."""
        first = next(batches)

        def gather(values: torch.Tensor) -> torch.Tensor:
            gathered: Any = self.accelerator.gather(values.to(self.device))
            return gathered.cpu()

        if not gather(torch.tensor([int(self.loader.begins_again)])).any():
            check_disjoint(first, gather, num_examples=self.task.source.num_examples)
        yield first
        yield from batches

    def _check_finite(self) -> None:
        """Raise `RunError` if the loss or the gradient of the last step is not finite."""
        if self.last_step is None:
            return
        before, loss, grad_norm, _ = self.last_step
        if not bool(torch.isfinite(loss) & torch.isfinite(grad_norm)):
            newest = latest_checkpoint(self.folder.checkpoints)
            kept = f"The last good checkpoint, {newest}, is kept" if newest else "No checkpoint had been written yet"
            raise RunError(
                f"The loss is {loss.item():g} and the gradient norm {grad_norm.item():g} in the batch of examples "
                f"{before:,} to {before + self.options.total_batch_size - 1:,} of the run. {kept}. "
                f"{self.task.remedy}, and start again."
            )

    def _describe_batch(self) -> str:
        t = self.options
        return (
            f"Batch: {describe_count(t.total_batch_size, 'image')} = "
            f"{describe_count(self.accelerator.num_processes, 'process')} x {self.accumulation} accumulated x "
            f"{self.micro_batch_size}; {describe_count(t.steps, 'step')}, {describe_count(t.images, 'image')}; "
            f"{hardware()}"
        )
