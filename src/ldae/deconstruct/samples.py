"""Draw samples of a finished run, a grid of pictures, FID and KID, on all processes of the launch."""

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from ldae.data import Batch, open_images
from ldae.deconstruct.preset import GenerationOptions
from ldae.deconstruct.steps import StepFolder
from ldae.evaluation.extractor import load_extractor
from ldae.evaluation.generation import GenerationScores, Sampling, gather_images
from ldae.pipelines.pipeline_ldae import LDAEPipeline
from ldae.reports.image_grids import sample_grid
from ldae.shared_work import is_main
from ldae.training.recipe import Recipe


GRID_COLUMNS = 10
SAMPLES_PICTURE = "samples.png"  # in the folder of pictures


def measure_samples(
    folder: StepFolder, recipe: Recipe, options: GenerationOptions, extractor: str, device: torch.device
) -> None:
    """Draw samples of a finished run and compare them with its training images: the step `samples`.

    `extractor` is the network whose features FID and KID compare, as of
    [`~ldae.evaluation.extractor.load_extractor`]. Within [`~ldae.shared_work.sharing_work`] all processes call this,
    and the main one records.
    """
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
    shown: list[Batch] = []

    def watched(batches: Iterable[Batch], total: int | None, activity: str) -> Iterator[Batch]:
        """Keep the batches that have images of the grid."""
        for batch in batches:
            if activity == "generated" and int(batch.positions[0]) < options.grid:
                shown.append(batch)
            yield batch

    scores = GenerationScores(
        open_images(recipe.data),
        load_extractor(extractor).to(device),
        num_images=options.num_images,
        fid=True,
        kid=True,
        batch_size=options.batch_size,
        num_workers=recipe.data.num_workers,
        reference_images=options.reference_images,
        weights="raw" if recipe.training.ema_decay is None else "ema",
        watched=watched,
    )
    with folder.step("samples", settings) as results:
        pipeline = LDAEPipeline.from_pretrained(folder.path).to(device)
        pipeline.set_progress_bar_config(disable=True)
        about = {"dataset": recipe.data.dataset, "split": recipe.data.split}
        results += scores.measure(pipeline, sampling, **about)[0]
        images = gather_images(shown).images[: options.grid]
        if is_main():
            sample_grid(images, columns=GRID_COLUMNS).save(folder.path / "pictures" / SAMPLES_PICTURE)
