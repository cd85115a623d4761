"""Limits of a recipe on this machine: its step, its loader and its memory, measured for a few seconds each."""

import io
import itertools
import time
from collections.abc import Iterator
from contextlib import closing, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import AutoModelForPreTraining

from ldae import stopping
from ldae.data import Batch, DataConfig, ImageSource, open_images, survey_images
from ldae.data.loader import PREFETCHED_BATCHES
from ldae.training.costs import RecipeCosts
from ldae.training.estimate import Rehearsal, StepTimer, rehearse
from ldae.training.machine import Machine, can_compile, release_memory
from ldae.training.memory import MemoryEstimate
from ldae.training.pretraining import DenoisingTask
from ldae.training.recipe import Recipe
from ldae.training.task import Task, open_loader


STEP_SECONDS = 3.0  # a measured step takes no longer: on a slow machine it has fewer images
LIKELY_SHARE = 0.2  # of the peak, to choose that number
SIDES = {"cpu": 1024, "cuda": 8192}  # of the square matrices whose product is timed
WAITED = 0.1  # share of a step; more is worth a change
LOW_SHARE = 0.25  # of the peak, on a GPU
EXAMINED = 32  # images that are looked at to advise on their size


@dataclass(frozen=True)
class Speed:
    """Speeds measured on one device. The last three are measured with the recipe's own images only."""

    peak: float  # FLOPs a second of the fastest large matrix product, in the recipe's precision
    flops_per_image: float  # of a step
    batch_size: int  # images of the measured steps
    step: float  # images a second of training steps on images that lie in memory
    loader: float | None = None  # images a second that the loader reads alone
    training: float | None = None  # images a second of training steps on images that the loader reads meanwhile
    waited: float = 0.0  # share of these steps that is spent waiting for images

    @property
    def share_of_peak(self) -> float:
        """Share of the peak that the steps reach."""
        return self.step * self.flops_per_image / self.peak

    def seconds(self, images: int) -> float:
        """Time for so many images."""
        return images / (self.training or self.step)


class RandomImagesTask(DenoisingTask):
    """The pre-training of a recipe on noise, for which no image is read and no tokenizer fitted."""

    rehearsing = True

    def open_source(self) -> ImageSource:
        """Return a stand-in for the images, which are not read."""
        return replace(open_images(DataConfig("digits")), name="random images")

    def build(self, checkpoint: Any) -> Any:
        """Build the denoiser with a tokenizer as it is before it is fitted."""
        model: Any = AutoModelForPreTraining.from_config(self.config)
        tokenizer = getattr(model.base_model, "tokenizer", None)
        if tokenizer is not None:
            tokenizer.fitted.fill_(True)
        return self.optimized(model)

    def batches(self) -> Iterator[Batch]:
        """Repeat one batch of noise at new positions of the run."""
        count, config, data = self.options.total_batch_size, self.config, self.recipe.data
        side = data.decode_size or config.image_size
        images = torch.randint(0, 256, (count, config.num_channels, side, side), dtype=torch.uint8)
        labels = torch.zeros(count, dtype=torch.int64)
        for step in itertools.count():
            yield Batch(images, torch.arange(count) + step * count, labels)


class OpenedImagesTask(DenoisingTask):
    """The pre-training of a recipe on images that are open already."""

    def __init__(self, recipe: Recipe, source: ImageSource) -> None:
        super().__init__(recipe)
        self.opened = source

    def open_source(self) -> ImageSource:
        """Return the images."""
        return self.checked(self.opened)


def measure_speed(
    recipe: Recipe, costs: RecipeCosts, memory: MemoryEstimate, device: str, source: ImageSource | None
) -> Speed:
    """Measure the steps of a pre-training on one device, and its loader if its images are given, for seconds each.

    Nothing is printed or written.

    Raises:
        ValueError: If not even one image fits into the memory.
    """
    peak = matrix_product_flops(device, recipe.training.mixed_precision == "bf16")
    batch = _measured_batch(recipe, costs, memory, peak)
    fields: dict[str, Any] = {
        "output_dir": None,
        "latent_cache": None,
        "images": 10**9,
        "base_learning_rate": 0.0,  # weights stay finite whatever the images
        "total_batch_size": batch,
        "micro_batch_size": None,
        "compile": recipe.training.compile and can_compile(device),
    }
    small = replace(recipe, training=replace(recipe.training, **fields))
    task = RandomImagesTask(replace(small, data=replace(recipe.data, num_workers=0)))
    alone = _rehearse_quietly(task, task.batches())
    speed = Speed(peak, costs.step, batch, batch / alone.seconds_per_step)
    if source is None:
        return speed
    loader = _loader_speed(small, source, batch)
    training = _rehearse_quietly(OpenedImagesTask(small, source))
    return replace(speed, loader=loader, training=batch / training.seconds_per_step, waited=training.waited)


def matrix_product_flops(device: str, bf16: bool) -> float:
    """Measure FLOPs a second of a large square matrix product, the best of five rounds of three."""
    side = SIDES.get(device, 2048)
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16 if bf16 else torch.float32) for _ in range(2))
    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    best = float("inf")
    for _ in range(6):  # the first round is no better than the others
        started = time.perf_counter()
        for _ in range(3):
            a @ b
        wait()
        best = min(best, (time.perf_counter() - started) / 3)
    return 2 * side**3 / best


def advise(
    recipe: Recipe, machine: Machine, speed: Speed, memory: MemoryEstimate, shorter_side: int | None
) -> list[str]:
    """List what would make a recipe faster on the machine where it was measured, the most useful first.

    `shorter_side` is that of its images in the median, in pixels, if it is known.
    """
    advice = _advise_on_reading(recipe, machine, speed, shorter_side) if speed.waited > WAITED else []
    training = recipe.training
    if machine.bf16 and training.mixed_precision == "no":
        advice.append("--mixed_precision bf16: this GPU computes in bfloat16, several times as fast as in float32")
    if machine.device == "cuda" and not training.compile and can_compile("cuda"):
        advice.append("--compile true: steps get faster after a minute of compiling")
    micro, share = training.batch_layout(1)[0], training.total_batch_size
    largest = memory.fitting_micro_batch(share) or micro
    if machine.device == "cuda" and speed.share_of_peak < LOW_SHARE and largest > micro:
        advice.append(f"--micro_batch_size {largest}: it fits, and larger products use more of the GPU")
    if training.activation_checkpointing and largest > micro:
        advice.append("--activation_checkpointing false: there is memory left, and blocks are computed once")
    return advice


def median_shorter_side(source: ImageSource) -> int | None:
    """Return the median shorter side of a few images in pixels; `None` for a stream."""
    return None if source.streaming else survey_images(source, EXAMINED).shorter_side


def _advise_on_reading(recipe: Recipe, machine: Machine, speed: Speed, shorter_side: int | None) -> list[str]:
    advice, workers = [], recipe.data.num_workers
    assert speed.loader is not None
    wanted = max(1, round(max(workers, 1) * speed.step / speed.loader))
    spare = machine.cores - 1
    if wanted > workers and spare > workers:
        advice.append(
            f"--num_workers {min(wanted, spare)}: {machine.cores} cores are here, and {workers} workers read"
        )
    config = recipe.model_config()
    side = recipe.data.decode_size or config.image_size
    if shorter_side is not None and shorter_side >= 2 * side:
        advice.append(
            f"smaller copies of the images: their shorter side is {shorter_side} pixels in the median, and {side} are "
            f"used; copies of {round(1.5 * side)} decode several times as fast"
        )
    if getattr(config, "latent_tokenizer", None) == "conv_vae" and recipe.training.latent_cache is None:
        advice.append("--latent_cache DIR: each image is read and encoded once, not in every epoch")
    advice.append("faster storage: parquet or .tar files on a local disk read faster than many small or remote files")
    if spare <= workers and not machine.on_cpu:
        advice.append(f"more cores: all {machine.cores} of this machine are taken")
    return advice


def _measured_batch(recipe: Recipe, costs: RecipeCosts, memory: MemoryEstimate, peak: float) -> int:
    """Return the recipe's micro-batch, or less if that does not fit or would take too long."""
    quick = max(1, int(STEP_SECONDS * LIKELY_SHARE * peak / costs.step))
    most = min(recipe.training.batch_layout(1)[0], quick)
    fitting = next((size for size in range(most, 0, -1) if replace(memory, micro_batch_size=size).fits), None)
    if fitting is None:
        raise ValueError(
            f"not even one image fits here: {replace(memory, micro_batch_size=1)}. Choose a smaller network, or see a "
            "larger machine with --on h100."
        )
    return fitting


def _loader_speed(recipe: Recipe, source: ImageSource, batch: int) -> float:
    """Return the images a second that a recipe's loader reads while nothing else is computed."""
    timer, seconds = StepTimer(PREFETCHED_BATCHES * recipe.data.num_workers), None
    with closing(open_loader(recipe, source, batch, batch)) as loader:
        while seconds is None:
            stopping.check()
            next(loader)
            seconds = timer.count()
    return batch / seconds


def _rehearse_quietly(task: Task, batches: Iterator[Batch] | None = None) -> Rehearsal:
    """Rehearse without printing, and release what that leaves in memory."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        rehearsal = rehearse(task, batches)
    release_memory()
    return rehearsal
