"""A recipe for one's own images on this machine: chosen from a survey and from measured steps, with its reasons."""

import io
import textwrap
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from typing import Any

import torch
import yaml

from ldae.data import ImageSource, ImageSurvey
from ldae.data.survey import time_reading
from ldae.training.estimate import rehearse
from ldae.training.machine import Machine, can_compile
from ldae.training.pretraining import DenoisingTask
from ldae.training.progress import describe_count, describe_seconds
from ldae.training.recipe import Recipe, build_recipe


# Side of the images and of the patches in pixels, and latent dimensions for colour and for grey images.
SHAPES = ((224, 16, 32, 16), (128, 16, 32, 16), (64, 8, 24, 16), (32, 4, 16, 8), (16, 4, 8, 6))
LARGEST_SIDE = {True: 64, False: 224}  # on a CPU, and on a GPU
ENLARGED = 1.25  # images may be enlarged by so much
# Peak learning rates by size: large networks need smaller ones. From the recipes that come with ldae.
RATES = {"nano": 2e-3, "tiny": 1e-3, "small": 5e-4, "base": 4e-4, "12L": 3e-4, "large": 2e-4}
SIZES = {True: ("nano", "tiny", "small"), False: ("tiny", "small", "base", "large")}  # on a CPU, and on a GPU
VIEWS, FEWEST, ENOUGH = 100, 200_000, 5_000_000  # a size is chosen if it sees each image so often, within these bounds
STEPS = 1000  # at least, where the time allows it
BATCHES = {True: (32, 64), False: (64, 1024)}
FORWARD = 1 / 3  # of the time of a step, which passes backward too
# Training and test images of the online probe, first its defaults.
PROBES = ((5000, 1000), (2000, 500), (1000, 200), (400, 100))
FEW_IMAGES = 100  # so few cannot be divided into training and test
PROBE_SHARE = 0.2  # of the time
MARGIN = 0.92  # of the time is planned
END_SECONDS = 4.0  # pictures, model card, saving


@dataclass
class Choice:
    """A field of the recipe with the reason for its value."""

    value: Any
    reason: str = ""


@dataclass
class OwnRecipe:
    """A recipe with its reasons."""

    sections: dict[str, dict[str, Choice]]  # by section and field
    seconds_per_step: float = 0.0  # here
    notes: list[str] = field(default_factory=list)  # what the user should know before it starts, a line each

    def build(self, **overrides: Any) -> Recipe:
        """Build the recipe as the reader does."""
        values = {
            section: {name: choice.value for name, choice in fields.items()}
            for section, fields in self.sections.items()
        }
        return build_recipe(values, overrides)

    def text(self, head: str) -> str:
        """Write the recipe as YAML, each value with its reason, below some lines of comment."""
        lines = [f"# {line}".rstrip() for line in head.splitlines()]
        for section, fields in self.sections.items():
            lines.append(f"{section}:")
            for name, choice in fields.items():
                value = yaml.safe_dump(choice.value).removesuffix("...\n").strip()
                if isinstance(choice.value, int) and choice.value >= 1000:
                    value = f"{choice.value:_}"
                lines += [f"  # {line}" for line in textwrap.wrap(choice.reason, 110)]
                lines.append(f"  {name}: {value}")
        return "\n".join(lines) + "\n"

    @property
    def summary(self) -> str:
        """Description of the network and the time of a step, in one line."""
        recipe = self.build()
        config, training = recipe.model_config(), recipe.training
        return (
            f"{self.sections['model']['size'].value} at {config.image_size} x {config.image_size} with patches of "
            f"{config.patch_size}: {1000 * self.seconds_per_step:.0f} ms a step of {training.total_batch_size} "
            f"images; {describe_count(training.steps, 'step')}, {training.images:,} images"
        )


@dataclass
class Planner:
    """Choice of a recipe for images, a machine and a time."""

    data: dict[str, Any]  # fields of the section `data`, which name the images
    source: ImageSource  # the same images, opened
    survey: ImageSurvey  # what they are
    machine: Machine  # where they are trained on
    seconds: float  # time for everything
    started: float  # seconds that a command takes before it opens the images
    output_dir: str  # the run's folder
    size: str | None = None  # of the network; by default chosen
    image_size: int | None = None  # by default chosen
    reading: float = field(default=0.0, init=False)  # seconds an image

    def plan(self) -> OwnRecipe:
        """Choose the recipe; this takes the first steps of one or two networks."""
        sizes = [self.size] if self.size is not None else SIZES[self.machine.on_cpu]
        self.reading = self._measure_reading()
        own = self._recipe(sizes[0], BATCHES[self.machine.on_cpu][0])
        per_image = self._measure(own)
        size = self._largest(sizes, per_image)
        per_image *= self._work(size) / self._work(sizes[0])
        batch = self._batch(self._budget(per_image)[0])
        own = self._recipe(size, batch)
        per_image = self._measure(own)
        own.seconds_per_step = per_image * batch
        self._set_budget(own, per_image)
        return own

    # -- the network --------------------------------------------------------------------------------------------------

    def _recipe(self, size: str, batch: int) -> OwnRecipe:
        """Choose everything that does not follow from the time of a step."""
        survey, machine = self.survey, self.machine
        side, patch, dimension, why = self._shape()
        cpu = machine.on_cpu
        model = {
            "size": Choice(size, self._why_size()),
            "image_size": Choice(side, why),
            "patch_size": Choice(
                patch, f"{(side // patch) ** 2} patches an image; half of it at least quadruples the time"
            ),
            "latent_dim": Choice(
                dimension,
                "principal components of a patch that are noised; at patches of 16, the paper finds 32 of 768 best",
            ),
        }
        if not survey.has_colour:
            model["num_channels"] = Choice(1, "no image shows colour")
        data = {name: Choice(value) for name, value in self.data.items()} | {
            "num_workers": Choice(
                self._workers(), "processes that read images beside the training; more if `wait` in the bar is high"
            ),
            "random_resized_crop": Choice(True, "each image is seen in other crops; off if its border matters"),
            "horizontal_flip": Choice(
                True, "set to false where left and right differ in meaning: text, digits, X-rays, maps"
            ),
        }
        rate = RATES[size]
        training: dict[str, Choice] = {
            "output_dir": Choice(self.output_dir, "the run: model, card, pictures, results; the same command resumes"),
            "images": Choice(1_000_000),
            "total_batch_size": Choice(
                batch, f"images a step; small enough for {STEPS:,} steps and more, where the time allows it"
            ),
            "base_learning_rate": Choice(
                float(f"{rate * 256 / batch:.3g}"),
                f"for a batch of 256, so a peak of {rate:g} at this one; halve it if the loss jumps",
            ),
            "warmup_images": Choice(0),
        }
        if not cpu:
            training["micro_batch_size"] = Choice(min(batch, 128), "images at once; halve it if memory runs out")
        if machine.bf16:
            training["mixed_precision"] = Choice("bf16", "this GPU computes in bfloat16")
        if machine.device == "cuda" and self.seconds >= 1800 and can_compile("cuda"):
            training["compile"] = Choice(True, "steps get faster after a minute of compiling")
        return OwnRecipe({"model": model, "data": data, "tokenizer": {}, "training": training})

    def _shape(self) -> tuple[int, int, int, str]:
        """Return side, patch size, latent dimension, and the reason for the side."""
        seen = self.survey.shorter_side
        largest = self.image_size or min(LARGEST_SIDE[self.machine.on_cpu], int(ENLARGED * seen))
        side, patch, colour, grey = next((s for s in SHAPES if s[0] <= largest), SHAPES[-1])
        if self.image_size is not None:
            side = self.image_size
            patch = next((p for p in (patch, 8, 4, 2) if side % p == 0 and p < side), 1)
        dimension = min(colour if self.survey.has_colour else grey, patch**2 * (3 if self.survey.has_colour else 1))
        why = f"the shorter side of the images is {seen} in the median"
        if self.image_size is not None:
            why = f"as asked for; {why}"
        elif self.machine.on_cpu and seen > side:
            why += "; larger takes too long on a CPU: twice the side with the same patch takes 4 times as long"
        return side, patch, dimension, why

    def _why_size(self) -> str:
        if self.size is not None:
            return "as asked for"
        others = ", ".join(SIZES[self.machine.on_cpu])
        return (
            f"the largest of {others} that sees each image {VIEWS} times in this time, and between {FEWEST:,} and "
            f"{ENOUGH:,} images in all; the smallest if none does"
        )

    def _workers(self) -> int:
        cores = self.machine.cores
        return max(0, min(2, cores // 2)) if self.machine.on_cpu else max(1, min(8, cores - 1))

    def _work(self, size: str) -> float:
        """Return the arithmetic of a size relative to others: weights of its blocks, as each patch passes them."""
        config = self._recipe(size, 1).build().model_config()
        return config.total_num_hidden_layers * config.hidden_size**2

    def _largest(self, sizes: Any, per_image: float) -> str:
        """Return the largest size that sees enough images, given the time per image of the first."""
        wanted = min(max(FEWEST, VIEWS * self.survey.num_images), ENOUGH)
        unit = per_image / self._work(sizes[0])
        return next((size for size in reversed(sizes) if self._budget(unit * self._work(size))[0] >= wanted), sizes[0])

    def _measure_reading(self) -> float:
        """Measure the time to read an image."""
        return time_reading(self.source, self._shape()[0])

    def _measure(self, own: OwnRecipe) -> float:
        """Measure the time of a step per image, at the largest micro-batch that fits the accelerator's memory."""
        training = own.sections["training"]
        while True:
            recipe = own.build(output_dir=None)
            try:
                with redirect_stdout(io.StringIO()):
                    seconds = rehearse(DenoisingTask(recipe)).seconds_per_step
                return seconds / recipe.training.total_batch_size
            except torch.OutOfMemoryError:
                micro = recipe.training.batch_layout(1)[0]
                if micro == 1:
                    raise ValueError(
                        f"size={own.sections['model']['size'].value!r} does not fit this accelerator's memory; give a "
                        "smaller --size or --image_size."
                    ) from None
                training["micro_batch_size"] = Choice(micro // 2, "images at once; more do not fit the memory here")

    # -- the budget ---------------------------------------------------------------------------------------------------

    def _budget(self, per_image: float) -> tuple[int, tuple[int, int] | None]:
        """Return the images that fit into the time, and the sizes of the probe's subset that go with it."""
        survey = self.survey
        reading = self.reading * min(survey.num_images, self._tokenizer_images())
        left = MARGIN * self.seconds - self.started - END_SECONDS - reading
        choices = PROBES if self._can_probe else ()
        choice = next((c for c in choices if self._probe_seconds(c, per_image) <= PROBE_SHARE * left), None)
        return max(0, int((left - self._probe_seconds(choice, per_image)) / per_image)), choice

    @property
    def _can_probe(self) -> bool:
        """True if there are enough images to hold some out, or to tell the rank of their features."""
        return self.survey.num_images >= FEW_IMAGES

    def _probe_seconds(self, choice: tuple[int, int] | None, per_image: float) -> float:
        """Return the time of the search that ends a run and, with labels, of two probes (halfway and at the end)."""
        if choice is None:
            return 0.0
        held_out = self.survey.num_images // 10
        train, test = min(choice[0], self.survey.num_images - held_out), min(choice[1], held_out)
        timesteps = len(self._recipe(self.size or "nano", 1).build().model_config().search_timesteps)
        if not self.survey.classes:
            return (FORWARD * per_image * timesteps + self.reading) * train
        passes = 2 * (train + test) * (1 + len(range(1, timesteps, 3))) + train * timesteps
        return FORWARD * per_image * passes + self.reading * (train + test)

    def _tokenizer_images(self) -> int:
        """Return the images that the PCA is fitted on: enough for its few dimensions, and read in a short time."""
        affordable = int(0.05 * self.seconds / max(self.reading, 1e-6))
        return min(self.survey.num_images, max(200, min(10_000, affordable)))

    def _batch(self, images: int) -> int:
        """Return the largest power of two that leaves enough steps and is no more than half of the images."""
        least, most = BATCHES[self.machine.on_cpu]
        batch = most
        while batch > least and (batch * STEPS > images or 2 * batch > self.survey.num_images):
            batch //= 2
        return batch

    def _set_budget(self, own: OwnRecipe, per_image: float) -> None:
        training, survey = own.sections["training"], self.survey
        batch = training["total_batch_size"].value
        images, probe = self._budget(per_image)
        images = max(batch, images // batch * batch)
        views = images / survey.num_images
        training["images"] = Choice(
            images,
            f"the budget: each of {survey.num_images:,} images {views:,.0f} times, in about "
            f"{describe_seconds(self.seconds)} here; raise it first (the paper sees each image 400 to 1600 times)",
        )
        share = 20 if training["base_learning_rate"].value * batch / 256 >= RATES["tiny"] else 4
        training["warmup_images"] = Choice(
            images // share, f"the learning rate rises over 1/{share} of the budget; keep this share"
        )
        training["log_every_images"] = Choice(max(batch, images // 20))
        own.sections["tokenizer"]["tokenizer_images"] = Choice(
            self._tokenizer_images(), "the PCA is fitted on so many images, once"
        )
        reason = "would take too much of this time" if self._can_probe else "says nothing about so few images"
        if survey.classes and probe is None:
            training["probe_every_images"] = Choice(0, f"measuring with the labels {reason}")
        elif survey.classes:
            training["probe_every_images"] = Choice(
                -(-images // 2), "labels are used for probes alone, halfway and at the end: does it learn?"
            )
        if probe is None:
            command = "ldae grid_search" if survey.classes else "ldae grid_search --criterion rankme"
            training["select_features"] = Choice(
                False, f"finding the best block and time step {reason}; afterwards: {command}"
            )
        elif probe != PROBES[0]:
            training["probe_train_examples"] = Choice(probe[0], "as many as take a fifth of the time or less")
            if survey.classes:
                training["probe_eval_examples"] = Choice(probe[1])
        own.notes = self._notes(own, images, per_image)

    def _notes(self, own: OwnRecipe, images: int, per_image: float) -> list[str]:
        notes = []
        if self.survey.num_images < FEW_IMAGES:
            notes.append(
                f"{self.survey.num_images:,} images are very few to learn from; add more, or fine-tune a checkpoint "
                "that was trained on others."
            )
        batch = own.sections["training"]["total_batch_size"].value
        if images < STEPS * batch // 4:
            notes.append(
                f"{describe_seconds(self.seconds)} allow {describe_count(images // batch, 'step')}, too few to learn "
                "much; give more --minutes, or a smaller --image_size."
            )
        workers = max(1, own.sections["data"]["num_workers"].value)
        if self.reading / workers > per_image:
            side = own.sections["model"]["image_size"].value
            notes.append(
                f"Reading takes {1000 * self.reading:.0f} ms an image, and training waits for it: with "
                f"copies whose shorter side is {2 * side} pixels, the same time sees more images."
            )
        return notes
