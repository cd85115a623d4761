"""`ldae generate CHECKPOINT`: generate images, and measure how near they are to real ones."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from ldae.checkpoints import loading
from ldae.data import Batch, DataConfig, ImageSource, iterate_once, open_images
from ldae.evaluation.distances import ImageDistances, image_distances, read_reference
from ldae.evaluation.extractor import FeatureExtractor, load_extractor
from ldae.evaluation.generation import Sampling, generate_images, generation_results
from ldae.pipelines.loading import open_pipeline
from ldae.pipelines.run_folder import HEUN, RunFolderPipeline
from ldae.processes import choose_device, make_accelerator
from ldae.reports.image_grids import sample_grid
from ldae.results import Result, check_results
from ldae.training.progress import progress_bar
from ldae.verbs.inputs import count_scored, data_config, record, results_place, table, weights_kind
from ldae.verbs.options.use import GenerateOptions


Scored = tuple[list[Result], ImageDistances]  # the results of one sampler, and the distances behind them


def generate(options: GenerateOptions) -> int:
    """Run `ldae generate`."""
    output_dir, checkpoint_name = results_place(options)
    samplings = _samplings(options)
    num_scored = count_scored(options)
    if not options.num_images and not num_scored:
        raise ValueError("num_images=0 without fid or kid leaves nothing to do; give a number, or --fid N.")
    accelerator = make_accelerator(cpu=options.device == "cpu", mixed_precision=options.mixed_precision)
    with accelerator.main_process_first():  # what is downloaded or prepared is so once
        # What the scores need is opened first: a misspelt name shall not cost the time of the pictures.
        data = _reference_data(options) if num_scored else None
        reference = open_images(data) if data else None
        extractor = load_extractor(options.extractor, options.inception_weights) if num_scored else None
        pipeline = _load_pipeline(options, accelerator)
    for sampling in samplings:  # all of them make sense, before the first is waited for
        pipeline.resolve_sampler(sampling.sampler, sampling.eta)
    check_results(output_dir)
    if accelerator.is_main_process:
        name = options.checkpoint if checkpoint_name != "." else output_dir
        print(f"Generating with {name}, on {accelerator.num_processes} x {pipeline.device}")
        config = pipeline.model.config
        if getattr(config, "noise_schedule", None) in ("linear_sigma", "constant"):
            print(
                f"Its noise_schedule={config.noise_schedule!r} never hides the image, so it did not learn to begin "
                "with noise alone: expect fragments. What it did learn, denoising, is in pictures/denoising.png."
            )

    with accelerator.autocast():
        if options.num_images:
            _draw_pictures(pipeline, samplings, options.num_images, output_dir / "pictures", accelerator)
        if data and reference and extractor:
            extractor.to(pipeline.device)
            about = {"dataset": reference.name, "split": reference.split, "checkpoint": checkpoint_name}
            scored = _measure(pipeline, samplings, reference, extractor, data.num_workers, options, accelerator, about)
            if accelerator.is_main_process:
                _report(scored, reference, extractor)
                found = [result for results, _ in scored for result in results]
                for result in found:
                    result.protocol["mixed_precision"] = options.mixed_precision
                record(output_dir, *found)
                print(f"Added to {output_dir / 'results.json'}")
    accelerator.wait_for_everyone()
    accelerator.end_training()
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


def _reference_data(options: GenerateOptions) -> DataConfig:
    data = data_config(options)
    return data if options.reference_split is None else replace(data, split=options.reference_split)


def _load_pipeline(options: GenerateOptions, accelerator: Accelerator) -> RunFolderPipeline:
    device = choose_device(options.device, accelerator.device)
    with loading(options.checkpoint):
        pipeline = open_pipeline(options.checkpoint)
    pipeline.set_progress_bar_config(disable=True)  # one of all images is shown instead
    return pipeline.to(device)


def _draw_pictures(
    pipeline: RunFolderPipeline,
    samplings: list[Sampling],
    num_images: int,
    folder: Path,
    accelerator: Accelerator,
) -> None:
    """Write a grid of images of the one sampler, or a row of each of several."""
    drawn, names = [], []
    for sampling in samplings:
        images, labels = _draw(pipeline, num_images, sampling, accelerator)
        drawn.append(images)
        names.append(f"{pipeline.describe_sampler(sampling.sampler, sampling.eta)} {pipeline.num_timesteps}")
    if not accelerator.is_main_process:
        return
    folder.mkdir(exist_ok=True)
    if len(samplings) == 1:
        path, grid = folder / "samples.png", sample_grid(images, labels)
    else:
        path, grid = folder / "samplers.png", sample_grid(torch.cat(drawn), columns=num_images, row_names=names)
    grid.save(path)
    print(f"{len(drawn) * num_images} images: {path}")


def _draw(
    pipeline: RunFolderPipeline, num_images: int, sampling: Sampling, accelerator: Accelerator
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Generate images in all processes; return them and their classes, in order."""
    classes = pipeline.model.config.num_class_embeds
    if sampling.classes is None and classes is not None and classes > num_images:
        rows = max(1, num_images // 8)  # of so many classes some, so that each has a row
        sampling = replace(sampling, classes=tuple(i * classes // rows for i in range(rows)))
    share = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
    batches = _watched(generate_images(pipeline, num_images, sampling, **share), num_images, "pictures", accelerator)
    mine = [
        (int(position), image, None if batch.labels is None else batch.labels[i])
        for batch in batches
        for i, (position, image) in enumerate(zip(batch.positions, batch.images, strict=True))
    ]
    everyone = sorted(gather_object(mine), key=lambda drawn: drawn[0])
    _, images, labels = zip(*everyone, strict=True)
    return torch.stack(images), None if labels[0] is None else torch.stack(labels)


def _measure(
    pipeline: RunFolderPipeline,
    samplings: list[Sampling],
    reference: ImageSource,
    extractor: FeatureExtractor,
    num_workers: int,
    options: GenerateOptions,
    accelerator: Accelerator,
    about: dict[str, Any],
) -> list[Scored]:
    """Score each sampler; the reference images are read once."""
    config, num_scored = pipeline.model.config, count_scored(options)
    share = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
    real = iterate_once(
        reference,
        image_size=config.image_size,
        num_channels=config.num_channels,
        batch_size=options.batch_size,
        limit=options.reference_images,
        num_workers=num_workers,
        **share,
    )
    known = [n for n in (reference.num_examples, options.reference_images) if n is not None]
    watched = _watched(real, min(known, default=None), "reference", accelerator)
    features = read_reference(watched, extractor, kid=options.kid is not None)
    weights, scored = weights_kind(options.checkpoint), []
    for sampling in samplings:
        generated = generate_images(pipeline, num_scored, sampling, **share)
        distances = image_distances(
            _watched(generated, num_scored, "generated", accelerator),
            features,
            extractor,
            fid=options.fid is not None,
            kid=options.kid is not None,
        )
        scored.append((generation_results(distances, sampling, pipeline, extractor, weights, **about), distances))
    return scored


def _watched(batches: Iterable[Batch], total: int | None, activity: str, accelerator: Accelerator) -> Iterator[Batch]:
    """Yield the batches, and advance a bar by the images of all processes."""
    with progress_bar(total, 0, accelerator.is_main_process, activity) as bar:
        for batch in batches:
            yield batch
            bar.update(min(len(batch.images) * accelerator.num_processes, (total or 2**62) - bar.n))


def _report(scored: list[Scored], reference: ImageSource, extractor: FeatureExtractor) -> None:
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
    protocol = first.protocol
    guidance = protocol["guidance_scale"]
    guided = "" if guidance == 1 else f"guidance {guidance:g}, "
    print(
        f"Against {distances.num_reference:,} images of {reference.description}, by features of {extractor.name}; "
        f"{guided}seed {first.seeds}, weights: {protocol['weights']}."
    )
    if distances.fid is not None and distances.num_generated <= extractor.num_features:
        print(
            f"{distances.num_generated} images are not more than the {extractor.num_features} features: FID is far "
            "above that of many images. Compare it at this number alone."
        )
