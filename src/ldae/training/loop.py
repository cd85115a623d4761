"""The training loop, whatever is trained: Accelerate, exact resuming, clean stops, a log. Subclasses say what a step is."""

import math
import signal
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, ProjectConfiguration, gather_object
from diffusers.training_utils import EMAModel
from torch import nn

from ldae.data import Batch, ImageLoader, check_disjoint, describe_counts, open_images, prepare_images
from ldae.errors import RunError
from ldae.training.checkpoint import (
    Checkpoint,
    collect_model,
    collect_optimizer,
    latest_checkpoint,
    load_checkpoint,
    restore,
    save_checkpoint,
)
from ldae.training.learning_rate import learning_rate
from ldae.training.progress import StopSignal, Stopwatch, hardware, progress_bar
from ldae.training.recipe import Recipe
from ldae.training.run_folder import RunFolder


class TrainingRun:
    """
    One run of a recipe in its folder. Building it resumes from the folder's last checkpoint; `train` goes to the end.

    A subclass builds the module (`build`), computes a micro-batch's loss (`loss`), puts the module into the folder
    (`export`) and says what comes at the end (`conclude`); more is optional (`measure`, `numbers`).

    Args:
        recipe ([`Recipe`]): With `training.output_dir`.

    Raises:
        ValueError: where the recipe makes no sense on this machine or with this data.
        RunError: where the folder cannot be used.
    """

    activity = "training"  # names the progress bar

    def __init__(self, recipe: Recipe):
        t = recipe.training
        if t.output_dir is None:
            raise ValueError("output_dir is missing; give the run's folder (--output_dir runs/NAME).")
        self.recipe, self.options = recipe, t
        self.image_size = recipe.model_config().image_size
        self.folder = RunFolder(t.output_dir)
        self.folder.check_recipe(recipe)
        self.accelerator = Accelerator(
            mixed_precision=t.mixed_precision,
            log_with=t.report_to or None,
            project_config=ProjectConfiguration(str(self.folder.path), logging_dir=str(self.folder.path / "logs")),
        )
        self.device, self.is_main = self.accelerator.device, self.accelerator.is_main_process
        self.end = t.steps * t.total_batch_size  # the budget in whole steps
        self.micro_batch_size, self.accumulation = t.batch_layout(self.accelerator.num_processes)
        if self.is_main:
            self.folder.claim(recipe)
        self.accelerator.wait_for_everyone()

        newest = latest_checkpoint(self.folder.checkpoints)
        checkpoint = load_checkpoint(newest) if newest else None
        self.images_seen = checkpoint.images_seen if checkpoint else 0
        self.seconds = checkpoint.state["seconds"] if checkpoint else 0.0
        self._since = time.perf_counter()
        with self.accelerator.main_process_first():  # what is downloaded or prepared is so once
            self.source = open_images(recipe.data, recipe.data.split)
        torch.manual_seed(t.seed)
        self.examples = self.source
        self.model = self.build(checkpoint).train()
        self.ema = None
        if t.ema_decay is not None:
            if self.accelerator.distributed_type == DistributedType.FSDP:
                raise ValueError(f"ema_decay={t.ema_decay} does not go with FSDP; set it to null, or launch with DDP.")
            self.ema = EMAModel(self._trained().values(), decay=t.ema_decay)
            self.ema.to(self.device)
        optimizer = torch.optim.AdamW(
            self.parameter_groups(),
            betas=t.adam_betas,
            weight_decay=t.weight_decay,
            fused=self.device.type != "mps",
        )
        self.network, self.optimizer = self.accelerator.prepare(self.model, optimizer)
        self.model = self.accelerator.unwrap_model(self.network)
        if checkpoint:
            self._restore(checkpoint)
        elif self.is_main:
            self.folder.forget_after(0)  # logged by a start that was killed before its first checkpoint
        # What each process had: its place in the data, and the losses that were not logged yet.
        ranks = checkpoint.state["ranks"] if checkpoint else [{"loader": None, "losses": []}]
        rank = self.accelerator.process_index
        mine = ranks[rank if rank < len(ranks) else 0]  # on more processes than before, the loader says what fits
        self.loader = self._open_loader(mine["loader"])
        self.losses = [torch.tensor(loss, device=self.device) for loss in mine["losses"]]

    # -- what a subclass says ------------------------------------------------------------------------------------------

    def build(self, checkpoint: Checkpoint | None) -> nn.Module:
        """
        The module to train, on the CPU; its weights are replaced afterwards by those of the checkpoint that the run goes on
        from. `self.examples`, what the loader reads, may be replaced here.
        """
        raise NotImplementedError

    def loss(self, batch: Batch, positions: torch.Tensor) -> torch.Tensor:
        """Loss `()` of a micro-batch, through `self.network`; `positions` are on the device."""
        raise NotImplementedError

    def export(self, weights: dict[str, torch.Tensor]) -> None:
        """Put what was trained into the folder, in the main process; also before the end, at every checkpoint."""

    def conclude_together(self, weights: dict[str, torch.Tensor]) -> None:
        """What of the conclusion all processes take part in; before `conclude`."""

    def conclude(self, weights: dict[str, torch.Tensor]) -> None:
        """What comes after the last step, in the main process: each part can be done again, should a kill come between."""

    def measure(self, at_end: bool) -> None:
        """What is measured now and then, in every process."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """AdamW's groups of the weights that train; a group's learning rate is `lr_scale` times the run's."""
        return [{"params": list(self._trained().values()), "lr_scale": 1.0}]

    def numbers(self) -> dict[str, float]:
        """More numbers for a line of the log, of the last step."""
        return {}

    # -- the loop ------------------------------------------------------------------------------------------------------

    def train(self) -> None:
        """
        Train to the end of the budget, then conclude.

        Raises:
            RunError: on a non-finite loss, or where the folder cannot be written to any more.
            SystemExit: after SIGTERM or SIGINT, once everything is saved.
        """
        t = self.options
        self._since = time.perf_counter()
        if t.report_to:
            self.accelerator.init_trackers("ldae", config={})
        self.say(f"{self.source.description}\n{self.describe()}\n{self._describe_batch()}")
        batches = self._first_batch_checked(iter(self.loader))
        watch, pending = Stopwatch(), None
        bar = progress_bar(self.end, self.images_seen, self.is_main, self.activity)
        with StopSignal() as stop, bar, closing(self.loader):
            while self.images_seen < self.end:
                rate = learning_rate(
                    self.images_seen,
                    images=t.images,
                    warmup_images=t.warmup_images,
                    total_batch_size=t.total_batch_size,
                    base_learning_rate=t.base_learning_rate,
                )
                loss, grad_norm = self.step(batches, rate, watch)
                # Looked at one step later, so that an accelerator never waits for the host.
                self._require_finite(pending)
                pending = (self.images_seen, loss, grad_norm)
                self.losses.append(loss)
                self.images_seen += t.total_batch_size
                watch.images += t.total_batch_size
                bar.update(t.total_batch_size)

                stopping = self._stopping(stop)
                at_end = self.images_seen >= self.end
                if self.due(t.log_every_images) or at_end:
                    self._require_finite(pending)
                    bar.set_postfix(self._log_training(grad_norm, rate, watch), refresh=False)
                self.measure(at_end)
                if self.due(t.checkpoint_every_images or max(1, t.images // 10)) or at_end or stopping:
                    self._require_finite(pending)
                    self.save()
                if stopping and not at_end:
                    self.say(f"Stopped by a signal; saved at {self.images_seen:,} images. The same command goes on.")
                    raise SystemExit(128 + (stop.received or 0))
        self.finish()

    def step(self, batches: Iterator[Batch], rate: float, watch: Stopwatch) -> tuple[torch.Tensor, torch.Tensor]:
        """One optimizer step: batch, loss, backward, clip, step, average."""
        t = self.options
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        total = torch.zeros((), device=self.device)
        for index in range(self.accumulation):
            waiting = time.perf_counter()
            batch = next(batches)
            watch.waited += time.perf_counter() - waiting
            positions = batch.positions.to(self.device, non_blocking=True)
            last = index == self.accumulation - 1
            with nullcontext() if last else self.accelerator.no_sync(self.network):
                loss = self.loss(batch, positions)
                self.accelerator.backward(loss / self.accumulation)
            total += loss.detach() / self.accumulation
        limit = math.inf if t.max_grad_norm is None else t.max_grad_norm  # measured all the same
        grad_norm = self.accelerator.clip_grad_norm_(self._trained().values(), limit)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.step(self._trained().values())
        return total, grad_norm

    def save(self) -> None:
        """Write a checkpoint; before the end also put the current model into the folder."""
        self.seconds += time.perf_counter() - self._since
        self._since = time.perf_counter()
        state = {
            "images_seen": self.images_seen,
            "seconds": self.seconds,
            "ranks": gather_object(
                [{"loader": self.loader.state_dict(), "losses": [loss.item() for loss in self.losses]}]
            ),
            "ema_steps": self.ema.optimization_step if self.ema else 0,
        }
        weights = collect_model(self.network)
        optimizer = collect_optimizer(self.network, self.optimizer.optimizer)
        if self.is_main:
            average = self._average()
            checkpoint = Checkpoint(weights, optimizer, average, state)
            save_checkpoint(self.folder.checkpoints, checkpoint, self.options.keep_checkpoints)
            if self.images_seen < self.end:  # at the end, `conclude` does
                self.export({**weights, **average})
        self.accelerator.wait_for_everyone()

    def finish(self) -> None:
        """What comes after the last checkpoint."""
        weights = collect_model(self.network)
        self.log(
            {
                "event": "trained",
                "seconds": round(self.seconds, 1),
                "hardware": hardware(),
                "processes": self.accelerator.num_processes,
                "weights": "ema" if self.ema else "raw",
                "images_read": describe_counts(self.loader.counts),
            }
        )
        weights = {**weights, **self._average()}
        self.conclude_together(weights)
        if self.is_main:
            self.say(f"Images read: {describe_counts(self.loader.counts)}")
            self.conclude(weights)
            self.folder.log({"images": self.images_seen, "event": "finished"})
        self.accelerator.wait_for_everyone()
        for tracker in self.accelerator.trackers:  # not end_training, which ends the processes' group too
            tracker.finish()

    # -- parts of a step -----------------------------------------------------------------------------------------------

    def pixels(self, batch: Batch, positions: torch.Tensor) -> torch.Tensor:
        """The batch's images `(b, C, H, W)` on the device, augmented as the recipe says."""
        data = self.recipe.data
        return prepare_images(
            batch.images.to(self.device, non_blocking=True),
            positions,
            self.options.seed,
            image_size=self.image_size,
            random_resized_crop=data.random_resized_crop and not data.crops_whole_images,
            crop_scale=data.crop_scale,
            horizontal_flip=data.horizontal_flip,
        )

    def due(self, every: int) -> bool:
        """Whether a multiple of `every` images was reached by the last step."""
        return self.images_seen // every > (self.images_seen - self.options.total_batch_size) // every

    def _trained(self) -> dict[str, nn.Parameter]:
        """The weights that train, by name."""
        return {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}

    def _average(self) -> dict[str, torch.Tensor]:
        return {name: shadow.detach().cpu() for name, shadow in self._shadows().items()}

    def _shadows(self) -> dict[str, torch.Tensor]:
        """The averaged weights by name; none where there is no average."""
        return {} if self.ema is None else dict(zip(self._trained(), self.ema.shadow_params, strict=True))

    def _restore(self, checkpoint: Checkpoint) -> None:
        restore(checkpoint, self.network, self.optimizer.optimizer)
        if self.ema is not None:
            for name, shadow in self._shadows().items():
                shadow.copy_(checkpoint.ema[name])
            self.ema.optimization_step = checkpoint.state["ema_steps"]
        if self.is_main:
            self.folder.forget_after(checkpoint.images_seen)
            self.say(f"Going on from {checkpoint.images_seen:,} images.")

    def _open_loader(self, start: dict[str, Any] | None) -> ImageLoader:
        config = self.recipe.model_config()
        return ImageLoader(
            self.examples,
            self.recipe.data,
            image_size=config.image_size,
            num_channels=config.num_channels,
            micro_batch_size=self.micro_batch_size,
            total_batch_size=self.options.total_batch_size,
            rank=self.accelerator.process_index,
            world_size=self.accelerator.num_processes,
            seed=self.options.seed,
            start=start,
        )

    def _require_finite(self, pending: tuple[int, torch.Tensor, torch.Tensor] | None) -> None:
        if pending is None:
            return
        before, loss, grad_norm = pending
        if not bool(torch.isfinite(loss) & torch.isfinite(grad_norm)):
            newest = latest_checkpoint(self.folder.checkpoints)
            kept = f"The last good checkpoint, {newest}, is kept" if newest else "No checkpoint had been written yet"
            raise RunError(
                f"The loss is {loss.item():g} and the gradient norm {grad_norm.item():g} in the batch of examples "
                f"{before:,} to {before + self.options.total_batch_size - 1:,} of the run. {kept}. Lower "
                "base_learning_rate, lengthen warmup_images, or set mixed_precision=no, and start again."
            )

    def _stopping(self, stop: StopSignal) -> bool:
        if self.accelerator.num_processes == 1:
            return stop.received is not None
        if (self.images_seen // self.options.total_batch_size) % 10:
            return False  # all processes agree every tenth step
        anyone = self.accelerator.reduce(torch.tensor(float(stop.received is not None), device=self.device), "sum")
        if anyone.item() and stop.received is None:
            stop.received = signal.SIGTERM  # another process's
        return stop.received is not None

    # -- telling -------------------------------------------------------------------------------------------------------

    def describe(self) -> str:
        """The module in words, for the first lines."""
        return f"Model: {sum(p.numel() for p in self.model.parameters()) / 1e6:.1f} M weights"

    def _describe_batch(self) -> str:
        t = self.options
        return (
            f"Batch: {t.total_batch_size} images = {self.accelerator.num_processes} processes x {self.accumulation} "
            f"accumulated x {self.micro_batch_size}; {t.steps:,} steps, {t.images:,} images; {hardware()}"
        )

    def _first_batch_checked(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        first = next(batches)
        check_disjoint(first, self._gather, num_examples=self.source.num_examples)
        yield first
        yield from batches

    def _gather(self, values: torch.Tensor) -> torch.Tensor:
        return self.accelerator.gather(values.to(self.device)).cpu()

    def _log_training(self, grad_norm: torch.Tensor, rate: float, watch: Stopwatch) -> dict[str, Any]:
        loss = self.accelerator.reduce(torch.stack(self.losses).mean(), "mean").item()
        self.losses = []
        shown = {"loss": round(loss, 6), "grad_norm": round(float(grad_norm), 4), "learning_rate": rate}
        shown |= {**self.numbers(), **watch.lap()}
        self.log({"event": "train", **shown})
        return {
            "loss": f"{loss:.4f}",
            "img/s": f"{shown['images_per_second']:.0f}",
            "wait": f"{shown['data_wait']:.0%}",
            "GiB": f"{shown['peak_memory_gib']:.1f}",
        }

    def log(self, record: dict[str, Any]) -> None:
        """A line of metrics.jsonl, and its numbers to the trackers."""
        if self.is_main:
            self.folder.log({"images": self.images_seen, **record})
        if self.options.report_to:
            event = record.get("event", "train")
            numbers = {f"{event}/{k}": v for k, v in record.items() if isinstance(v, (int, float))}
            self.accelerator.log(numbers, step=self.images_seen)

    def say(self, text: str) -> None:
        """Print, once for all processes."""
        if self.is_main:
            print(text, flush=True)
