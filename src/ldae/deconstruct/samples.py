"""Draw samples of a finished run, a grid of pictures, FID and KID, on all processes of the launch."""

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object

from ldae.data import Batch, iterate_once, open_images
from ldae.deconstruct.preset import GenerationOptions
from ldae.deconstruct.steps import StepFolder
from ldae.evaluation.distances import image_distances
from ldae.evaluation.extractor import load_extractor
from ldae.evaluation.generation import Sampling, generate_images, generation_results
from ldae.pipelines.pipeline_ldae import LDAEPipeline
from ldae.processes import join_processes
from ldae.reports.image_grids import sample_grid
from ldae.training.recipe import Recipe


GRID_COLUMNS = 10
SAMPLES_PICTURE = "samples.png"  # in the folder of pictures


def measure_samples(
    folder: StepFolder, recipe: Recipe, options: GenerationOptions, extractor: str, device: torch.device
) -> None:
    """Draw samples of a finished run and compare them with its training images: the step `samples`.

    `extractor` is the network whose features FID and KID compare, as of
    [`~ldae.evaluation.extractor.load_extractor`].
    """
    state = join_processes()
    config = recipe.model_config()
    chosen = {name: value for name, value in dataclasses.asdict(options).items() if name not in ("rows", "extractor")}
    settings = [chosen, Path(extractor).name, recipe.training.images]
    if folder.is_done("samples", settings):
        return
    sampling = Sampling(
        steps=None if config.noise_schedule == "constant" else options.steps,  # a constant schedule has one step
        guidance_scale=options.guidance_scale if config.num_class_embeds is not None else 1.0,
        batch_size=options.batch_size,
    )
    network = load_extractor(extractor).to(device)
    source = open_images(recipe.data, recipe.data.split)
    share: dict[str, Any] = {"rank": state.process_index, "world_size": state.num_processes}
    with folder.step("samples", settings) as results:
        pipeline = LDAEPipeline.from_pretrained(folder.path).to(device)
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
        if not state.is_main_process:
            return
        sample_grid(images, columns=GRID_COLUMNS).save(folder.path / "pictures" / SAMPLES_PICTURE)
        weights = "raw" if recipe.training.ema_decay is None else "ema"
        about = {"dataset": recipe.data.dataset, "split": recipe.data.split}
        results += generation_results(distances, sampling, pipeline, network, weights, **about)


def _watched(batches: Iterable[Batch], most: int, shown: list[Batch]) -> Iterator[Batch]:
    """Yield all batches, and append those with the first `most` images to `shown`."""
    for batch in batches:
        if int(batch.positions[0]) < most:
            shown.append(batch)
        yield batch


def _first_images(shown: list[Batch], most: int) -> torch.Tensor:
    """Gather the first `most` images of all processes in order."""
    mine = [
        (int(position), image)
        for batch in shown
        for position, image in zip(batch.positions, batch.images, strict=True)
        if position < most
    ]
    everyone = sorted(gather_object(mine), key=lambda drawn: drawn[0])
    return torch.stack([image for _, image in everyone])
