"""Samples of a finished run: a grid to look at, FID and KID, by all processes of the launch together."""

import dataclasses
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from ldae.data import Batch, iterate_once, open_images
from ldae.deconstruct.preset import GenerationOptions
from ldae.deconstruct.unit_folder import UnitFolder
from ldae.evaluation.distances import image_distances
from ldae.evaluation.extractor import load_extractor
from ldae.evaluation.generation import Sampling, generate_images, generation_results
from ldae.pipelines.pipeline_ldae import LDAEPipeline
from ldae.reports.samples import sample_grid
from ldae.training.recipe import Recipe


COLUMNS = 10  # of the grid
SAMPLES_PICTURE = Path("pictures") / "samples.png"


def measure_samples(
    unit: UnitFolder, recipe: Recipe, options: GenerationOptions, extractor: str, device: torch.device
) -> None:
    """
    Draw samples of a run, and compare them with its training images, as step `samples`.

    Args:
        unit ([`UnitFolder`]): A finished run.
        recipe ([`Recipe`]): Of that run.
        options ([`GenerationOptions`]): How many, and how.
        extractor (`str`): Whose features FID and KID compare, as of [`~ldae.evaluation.extractor.load_extractor`].
        device (`torch.device`): Where.
    """
    state = PartialState()
    config = recipe.model_config()
    chosen = {name: value for name, value in dataclasses.asdict(options).items() if name not in ("rows", "extractor")}
    settings = [chosen, Path(extractor).name, recipe.training.images]
    done = unit.is_done("samples", settings)
    state.wait_for_everyone()  # nobody notes that it is done before everybody has looked
    if done:
        return
    sampling = Sampling(
        steps=None if config.noise_schedule == "constant" else options.steps,  # which has one step
        guidance_scale=options.guidance_scale if config.num_class_embeds is not None else 1.0,
        batch_size=options.batch_size,
    )
    network = load_extractor(extractor).to(device)
    source = open_images(recipe.data, recipe.data.split)
    share: dict[str, Any] = {"rank": state.process_index, "world_size": state.num_processes}
    with unit.step("samples", settings) if state.is_main_process else nullcontext() as recorder:
        pipeline = LDAEPipeline.from_pretrained(unit.path).to(device)
        pipeline.set_progress_bar_config(disable=True)
        shown: list[Batch] = []
        distances = image_distances(
            _watched(generate_images(pipeline, options.num_images, sampling, **share), options.grid, shown),
            iterate_once(
                source,
                **share,
                image_size=config.image_size,
                num_channels=config.num_channels,
                batch_size=options.batch_size,
                limit=options.reference_images,
                num_workers=recipe.data.num_workers,
            ),
            network,
        )
        images = _first_images(shown, options.grid)
        if recorder is None:
            return
        sample_grid(images, columns=COLUMNS).save(unit.path / SAMPLES_PICTURE)
        weights = "raw" if recipe.training.ema_decay is None else "ema"
        for entry in generation_results(distances, sampling, pipeline, network, weights):
            recorder.add({**entry, "dataset": recipe.data.dataset, "split": recipe.data.split, "checkpoint": "."})


def _watched(batches: Iterable[Batch], most: int, shown: list[Batch]) -> Iterator[Batch]:
    """The batches, of which those that the first `most` images lie in are kept."""
    for batch in batches:
        if int(batch.positions[0]) < most:
            shown.append(batch)
        yield batch


def _first_images(shown: list[Batch], most: int) -> torch.Tensor:
    """The first `most` images of all processes, in order."""
    mine = [
        (int(position), image)
        for batch in shown
        for position, image in zip(batch.positions, batch.images, strict=True)
        if position < most
    ]
    everyone = sorted(gather_object(mine), key=lambda drawn: drawn[0])
    return torch.stack([image for _, image in everyone])
