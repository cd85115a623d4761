"""`ldae generate CHECKPOINT`: pictures of what a checkpoint generates, and how near these are to real images."""

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from ldae.data import Batch, DataConfig, ImageSource, iterate_once, open_images
from ldae.evaluation.distances import ImageDistances, image_distances, read_reference
from ldae.evaluation.extractor import INCEPTION, FeatureExtractor, load_extractor
from ldae.evaluation.generation import Sampling, generate_images, generation_results
from ldae.pipelines.loading import open_pipeline
from ldae.pipelines.run_folder import HEUN, RunFolderPipeline
from ldae.reports.samples import sample_grid
from ldae.results import Result, add_result
from ldae.training.progress import progress_bar
from ldae.training.recipe import load_recipe
from ldae.verbs.probe_options import (
    add_shared_options,
    data_config,
    numbers,
    parse,
    results_place,
    table,
)


Scored = tuple[list[Result], ImageDistances]  # the results of one sampler, and what they are made of
REFERENCE_OPTIONS = "dataset dataset_config image_column streaming num_workers cache_dir".split()


def make_parser() -> argparse.ArgumentParser:
    """The options of the verb."""
    parser = argparse.ArgumentParser(
        "ldae generate",
        description="Generate images. A grid of them goes to pictures/samples.png (with --samplers a row of each to "
        "pictures/samplers.png); with --fid or --kid as many as you say are compared with the images of the run's data, "
        "and the scores go to results.json with all that they depend on. Each image depends on --seed and its number "
        "alone: several processes (accelerate launch) share the work and find the same scores.",
        allow_abbrev=False,
    )
    add_shared_options(parser, REFERENCE_OPTIONS)
    parser.add_argument(
        "--num_images", type=int, help="in the picture (default: 64; with --samplers 10 of each, from the same noise)"
    )
    parser.add_argument(
        "--sampler",
        help="ddim, ancestral, or of a DDAE heun, with the 18 levels of EDM (default: heun of an EDM, else ddim)",
    )
    parser.add_argument("--samplers", help="several to compare, each with its steps: ddim:50,ancestral:1000,heun:18")
    parser.add_argument(
        "--steps",
        type=int,
        help="of the sampler (default: ddim 50, ancestral 1000, heun 18; 1 for the constant schedule)",
    )
    parser.add_argument(
        "--eta", type=float, default=0.0, help="without --sampler: 0 is deterministic (DDIM), 1 ancestral (default: 0)"
    )
    parser.add_argument(
        "--guidance_scale", type=float, default=1.0, help="classifier-free guidance (default: 1, none)"
    )
    parser.add_argument("--classes", help="of a class-conditional model, such as 0,7 (default: all, in turn)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    parser.add_argument("--batch_size", type=int, default=64, help="images at once, in each process (default: 64)")
    parser.add_argument("--mixed_precision", choices=("no", "bf16"), default="no", help="of the network")
    add_score_options(parser)
    return parser


def add_score_options(parser: argparse.ArgumentParser) -> None:
    """What FID and KID are of."""
    scores = parser.add_argument_group("scores")
    scores.add_argument("--fid", type=int, metavar="N", help="Frechet distance of N images; usually 50000")
    scores.add_argument("--kid", type=int, metavar="N", help="kernel distance of N images; the N of --fid if both")
    scores.add_argument(
        "--extractor",
        default=INCEPTION,
        help="whose features are compared: a folder or Hub id of an image model, such as a classifier of this data set "
        "(default: inception, which needs torch-fidelity)",
    )
    scores.add_argument(
        "--inception_weights", help=f"file of the weights of {INCEPTION}, where it cannot be downloaded"
    )
    scores.add_argument("--reference_split", help="what they are compared with (default: the split of pre-training)")
    scores.add_argument("--reference_images", type=int, metavar="N", help="its first N images (default: all)")


def main(argv: list[str]) -> int:
    """Runs the verb.

    Args:
        argv: the command line without the program's name.

    Returns:
        The exit status: 0.

    Raises:
        ValueError: where an option, the checkpoint or the data is refused.
    """
    options = parse(make_parser(), argv)
    output_dir, checkpoint_name = results_place(options)
    samplings = _samplings(options)
    num_scored = count_scored(options)
    accelerator = Accelerator(cpu=options.device == "cpu", mixed_precision=options.mixed_precision)
    with accelerator.main_process_first():  # what is downloaded or prepared is so once
        # What the scores need is opened first: a misspelt name shall not cost the time of the pictures.
        data = _reference_data(options) if num_scored else None
        reference = open_images(data) if data else None
        extractor = load_extractor(options.extractor, options.inception_weights) if num_scored else None
        pipeline = _load_pipeline(options, accelerator)
    for sampling in samplings:  # all of them make sense, before the first is waited for
        pipeline.resolve_sampler(sampling.sampler, sampling.eta)
    output_dir.mkdir(parents=True, exist_ok=True)
    if accelerator.is_main_process:
        name = options.checkpoint if checkpoint_name != "." else output_dir
        print(f"Generating with {name}, on {accelerator.num_processes} x {pipeline.device}")
        config = pipeline.model.config
        if getattr(config, "noise_schedule", None) in ("linear_sigma", "constant"):
            print(
                f"Its noise_schedule={config.noise_schedule!r} never hides the image, so it did not learn to begin with "
                "noise alone: expect fragments. What it did learn, denoising, is in pictures/denoising.png."
            )

    with accelerator.autocast():
        if options.num_images:
            _draw_pictures(pipeline, samplings, options.num_images, output_dir / "pictures", accelerator)
        if data and reference and extractor:
            extractor.to(pipeline.device)
            about = {"dataset": reference.name, "split": reference.split, "checkpoint": checkpoint_name}
            scored = _measure(pipeline, samplings, reference, extractor, data.num_workers, options, accelerator, about)
            if accelerator.is_main_process:
                for results, _ in scored:
                    for result in results:
                        result.protocol["mixed_precision"] = options.mixed_precision
                        add_result(output_dir, result)
                _report(scored, reference, extractor, output_dir)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return 0


def weights_kind(checkpoint: str) -> str:
    """Whether a run exported averaged weights: "ema" or "raw" by its recipe.yaml, "unknown" where there is none."""
    recipe = Path(checkpoint) / "recipe.yaml"
    if not recipe.is_file():
        return "unknown"
    return "raw" if load_recipe(recipe).training.ema_decay is None else "ema"


def _samplings(options: argparse.Namespace) -> list[Sampling]:
    """What is generated by: the one sampler of the options, or all that are compared."""
    shared: dict[str, Any] = {
        "guidance_scale": options.guidance_scale,
        "classes": numbers(options.classes, "classes"),
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
    chosen = [part.partition(":") for part in options.samplers.split(",")]
    if not all(name and (not colon or steps.isdecimal()) for name, colon, steps in chosen):
        raise ValueError(
            f"samplers={options.samplers!r} is not understood; give names and steps, such as ddim:50,heun:18."
        )
    return [Sampling(sampler=name, steps=int(steps) if steps else None, **shared) for name, _, steps in chosen]


def count_scored(options: argparse.Namespace) -> int:
    """
    How many images FID and KID are of; 0 for none.

    Raises:
        ValueError: where one of the options that count images is not possible.
    """
    given = {name: getattr(options, name) for name in ("fid", "kid") if getattr(options, name) is not None}
    if len(set(given.values())) > 1:
        raise ValueError(
            f"fid={options.fid} and kid={options.kid} are of the same images; give the same number to both."
        )
    counts = {"num_images": (options.num_images, 0), "batch_size": (options.batch_size, 1)}
    counts |= {name: (value, 2) for name, value in given.items()}
    for name, (value, least) in counts.items():
        if value < least:
            raise ValueError(f"{name}={value} is not possible; give {least} or more.")
    return next(iter(given.values()), 0)


def _reference_data(options: argparse.Namespace) -> DataConfig:
    data = data_config(options)
    return data if options.reference_split is None else replace(data, split=options.reference_split)


def _load_pipeline(options: argparse.Namespace, accelerator: Accelerator) -> RunFolderPipeline:
    device = torch.device(options.device) if options.device else accelerator.device
    if accelerator.num_processes > 1 and device.type != accelerator.device.type:
        raise ValueError(f"device={options.device} is not possible with several processes; leave it out, or give cpu.")
    try:
        pipeline = open_pipeline(options.checkpoint)
    except OSError as error:
        raise ValueError(f"checkpoint={options.checkpoint!r} cannot be loaded: {error}") from error
    pipeline.set_progress_bar_config(disable=True)  # one of all images is shown instead
    return pipeline.to(accelerator.device if accelerator.num_processes > 1 else device)


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
    """The images of all processes and their classes, in order."""
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
    options: argparse.Namespace,
    accelerator: Accelerator,
    about: dict[str, Any],
) -> list[Scored]:
    """The scores of each sampler; the reference images are read once."""
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
    """The batches, with a bar of the images of all processes."""
    with progress_bar(total, 0, accelerator.is_main_process, activity) as bar:
        for batch in batches:
            yield batch
            bar.update(min(len(batch.images) * accelerator.num_processes, (total or 2**62) - bar.n))


def _report(scored: list[Scored], reference: ImageSource, extractor: FeatureExtractor, output_dir: Path) -> None:
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
        f"Against {distances.num_reference:,} images of {reference.description}, by features of {extractor.name}; {guided}"
        f"seed {first.seeds}, weights: {protocol['weights']}."
    )
    if distances.fid is not None and distances.num_generated <= extractor.num_features:
        print(
            f"{distances.num_generated} images are not more than the {extractor.num_features} features: FID is far above "
            "that of many images. Compare it at this number alone."
        )
    print(f"Added to {output_dir / 'results.json'}")
