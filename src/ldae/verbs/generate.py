"""`ldae generate CHECKPOINT`: generate images, and measure how near they are to real ones."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ldae.checkpoints import loading
from ldae.evaluation.distances import ImageDistances
from ldae.evaluation.generation import GenerationScores, Sampling, gather_images, generate_images
from ldae.pipelines.loading import open_pipeline
from ldae.pipelines.run_folder import HEUN, RunFolderPipeline
from ldae.processes import choose_device, join_processes
from ldae.reports.image_grids import sample_grid
from ldae.results import Result, check_results
from ldae.shared_work import is_main, main_first, share
from ldae.verbs.inputs import data_config, open_scores, record, results_place, table, watched
from ldae.verbs.options.use import GenerateOptions


def generate(options: GenerateOptions) -> int:
    """Run `ldae generate`."""
    output_dir, checkpoint_name = results_place(options)
    samplings = _samplings(options)
    if not options.num_images and not options.num_scored:
        raise ValueError("num_images=0 without fid or kid leaves nothing to do; give a number, or --fid N.")
    device = choose_device(options.device, join_processes(options.device == "cpu").device)
    # What the scores need is opened first: a misspelt name shall not cost the time of the pictures.
    scores = main_first(lambda: open_scores(options, data_config(options), device) if options.num_scored else None)
    pipeline = main_first(lambda: _load_pipeline(options, device))
    for sampling in samplings:  # all of them make sense, before the first is waited for
        pipeline.resolve_sampler(sampling.sampler, sampling.eta)
    check_results(output_dir)
    name = options.checkpoint if checkpoint_name != "." else output_dir
    print(f"Generating with {name}, on {share()[1]} x {pipeline.device}")
    schedule = getattr(pipeline.model.config, "noise_schedule", None)
    if schedule in ("linear_sigma", "constant"):
        print(
            f"Its noise_schedule={schedule!r} never hides the image, so it did not learn to begin with noise alone: "
            "expect fragments. What it did learn, denoising, is in pictures/denoising.png."
        )
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=options.mixed_precision == "bf16"):
        if options.num_images:
            _draw_pictures(pipeline, samplings, options.num_images, output_dir / "pictures")
        if scores is not None:
            scored = [scores.measure(pipeline, sampling, checkpoint=checkpoint_name) for sampling in samplings]
            if is_main():
                _report(scored, scores)
                found = [result for results, _ in scored for result in results]
                for result in found:
                    result.protocol["mixed_precision"] = options.mixed_precision
                record(output_dir, *found)
                print(f"Added to {output_dir / 'results.json'}")
    return 0


def _samplings(options: GenerateOptions) -> list[Sampling]:
    """List the sampler of the options, or all that are compared."""
    shared: dict[str, Any] = {
        "guidance_scale": options.guidance_scale,
        "classes": None if options.classes is None else tuple(options.classes),
        "seed": options.seed,
        "batch_size": options.batch_size,
    }
    if options.num_images is None:
        options.num_images = 64 if options.samplers is None else 10
    if options.samplers is None:
        return [Sampling(steps=options.steps, eta=options.eta, sampler=options.sampler, **shared)]
    alone = {"sampler": None, "steps": None, "eta": 0.0}
    for name, default in alone.items():
        if (value := getattr(options, name)) != default:
            raise ValueError(f"{name}={value} does not go with samplers={options.samplers}; leave one of them out.")
    chosen = [part.partition(":") for part in options.samplers]
    if not all(name and (not colon or steps.isdecimal()) for name, colon, steps in chosen):
        raise ValueError(f"samplers={options.samplers!r} must be names and steps, such as ddim:50,heun:18.")
    return [Sampling(sampler=name, steps=int(steps) if steps else None, **shared) for name, _, steps in chosen]


def _load_pipeline(options: GenerateOptions, device: torch.device) -> RunFolderPipeline:
    with loading(options.checkpoint):
        pipeline = open_pipeline(options.checkpoint)
    pipeline.set_progress_bar_config(disable=True)  # one of all images is shown instead
    return pipeline.to(device)


def _draw_pictures(pipeline: RunFolderPipeline, samplings: list[Sampling], num_images: int, folder: Path) -> None:
    """Write a grid of images of the one sampler, or a row of each of several."""
    drawn, names = [], []
    for sampling in samplings:
        images, labels = _draw(pipeline, num_images, sampling)
        drawn.append(images)
        names.append(f"{pipeline.describe_sampler(sampling.sampler, sampling.eta)} {pipeline.num_timesteps}")
    if not is_main():
        return
    folder.mkdir(exist_ok=True)
    if len(samplings) == 1:
        path, grid = folder / "samples.png", sample_grid(images, labels)
    else:
        path, grid = folder / "samplers.png", sample_grid(torch.cat(drawn), columns=num_images, row_names=names)
    grid.save(path)
    print(f"{len(drawn) * num_images} images: {path}")


def _draw(
    pipeline: RunFolderPipeline, num_images: int, sampling: Sampling
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Generate images in all processes; return them and their classes, in order."""
    classes = pipeline.model.config.num_class_embeds
    if sampling.classes is None and classes is not None and classes > num_images:
        rows = max(1, num_images // 8)  # of so many classes some, so that each has a row
        sampling = replace(sampling, classes=tuple(i * classes // rows for i in range(rows)))
    rank, world_size = share()
    generated = generate_images(pipeline, num_images, sampling, rank=rank, world_size=world_size)
    drawn = gather_images(watched(generated, num_images, "pictures"))
    return drawn.images, drawn.labels


def _report(scored: list[tuple[list[Result], ImageDistances]], scores: GenerationScores) -> None:
    """Print a row for each sampler."""
    rows = [["sampler", "steps", "calls of the network", *(result.metric for result in scored[0][0])]]
    for results, _ in scored:
        protocol = results[0].protocol
        steps = protocol["steps"]
        calls = 2 * steps - 1 if protocol["sampler"] == HEUN else steps
        values = [
            f"{result.value:.4f}"
            + (f" +- {result.details['subset_std']:.4f}" if "subset_std" in result.details else "")
            for result in results
        ]
        rows.append([protocol["sampler"], str(steps), str(calls), *values])
    print(table(rows))
    (first, *_), distances = scored[0]
    extractor = scores.extractor
    protocol = first.protocol
    guidance = protocol["guidance_scale"]
    guided = "" if guidance == 1 else f"guidance {guidance:g}, "
    print(
        f"Against {distances.num_reference:,} images of {scores.source.description}, by features of {extractor.name}; "
        f"{guided}seed {first.seeds}, weights: {protocol['weights']}."
    )
    if distances.fid is not None and distances.num_generated <= extractor.num_features:
        print(
            f"{distances.num_generated} images are not more than the {extractor.num_features} features: FID is far "
            "above that of many images. Compare it at this number alone."
        )
