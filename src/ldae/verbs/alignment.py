"""`ldae alignment CHECKPOINT`: alignment and uniformity of features by block and time step, and of each checkpoint."""

import argparse
from collections.abc import Iterator
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg

from ldae.evaluation.alignment import SphereScore, default_timesteps, measure_alignment
from ldae.evaluation.images import ImageSet, fixed_subset
from ldae.reports.alignment_pictures import sphere_course, sphere_map
from ldae.results import add_result
from ldae.training.checkpoint_models import checkpoint_models
from ldae.verbs.probe_options import ProbeInputs, add_shared_options, boolean, numbers, open_inputs, parse, table


def main(argv: list[str]) -> int:
    """Runs the verb.

    Args:
        argv: the command line without the program's name.

    Returns:
        The exit status, 0.

    Raises:
        ValueError: naming the option, its value and the remedy.
    """
    parser = argparse.ArgumentParser(
        "ldae alignment",
        description="Alignment and uniformity (Wang & Isola 2020) of an l-DAE's or a DDAE's features: how far apart two "
        "noisings of an image lie on the unit sphere, and how evenly different images are spread over it. Lower is "
        "better in both. No labels are used.",
        allow_abbrev=False,
    )
    add_shared_options(parser)
    parser.add_argument("--layers", help="blocks, counted from 1, or taps of a DDAE (default: the end of every block)")
    parser.add_argument("--timesteps", help="time steps (default: the model's, and 5, 10, 20, 40 and 80 %% of all)")
    parser.add_argument(
        "--checkpoints",
        type=boolean,
        nargs="?",
        const=True,
        default=False,
        help="every checkpoint that the run kept, against images seen (default: the model alone)",
    )
    parser.add_argument(
        "--centred",
        type=boolean,
        nargs="?",
        const=True,
        default=False,
        help="take the mean feature off first, as probes do (default: as the papers define it, without)",
    )
    parser.add_argument("--num_images", type=int, default=10_000, help="of the test split, at most (default: 10000)")
    parser.add_argument("--seeds", default="0,1", help="of the two noisings (default: 0,1)")
    parser.add_argument("--chunk_size", type=int, default=2048, help="images whose distances are held (default: 2048)")
    parser.add_argument("--forward_batch_size", type=int, default=256, help="images of a forward (default: 256)")
    parser.add_argument("--mixed_precision", choices=("no", "bf16"), default="no", help="of the features")
    options = parse(parser, argv)
    seeds = numbers(options.seeds, "seeds") or ()
    if len(set(seeds)) != 2:
        raise ValueError(f"seeds={options.seeds!r} is not possible; give two different ones, such as 0,1.")
    for name, least in (("num_images", 2), ("chunk_size", 1)):
        if getattr(options, name) < least:
            raise ValueError(f"{name}={getattr(options, name)} is not possible; it must be {least} or more.")
    options.block_sweep, options.noisy = options.layers is None, True
    inputs = open_inputs(options, labelled=False)
    timesteps = numbers(options.timesteps, "timesteps") or default_timesteps(inputs.config)
    layers = inputs.layers or ()
    source = fixed_subset(inputs.test_source, options.num_images, 0)
    images = ImageSet(
        source,
        image_size=inputs.encoder.image_size,
        num_channels=inputs.encoder.num_channels,
        batch_size=options.forward_batch_size,
        num_workers=inputs.data.num_workers,
    )
    print(f"Alignment and uniformity of {options.checkpoint}, {len(layers)} blocks x {len(timesteps)} t")
    print(f"images: {source.description}; on {inputs.device}")
    found: dict[int, list[SphereScore]] = {}
    for seen, name, model in _models(inputs, options.checkpoints):
        found[seen] = measure_alignment(
            model,
            images,
            layers=layers,
            timesteps=timesteps,
            seeds=(seeds[0], seeds[1]),
            centred=options.centred,
            chunk_size=options.chunk_size,
            device=inputs.device,
            dtype=inputs.dtype,
        )
        _record(found[seen], inputs, options.centred, name, seen, seeds)
    _show(found, inputs, options.centred)
    return 0


def _models(inputs: ProbeInputs, checkpoints: bool) -> Iterator[tuple[int, str, Any]]:
    """Images seen (0 where that is not asked), what results call it, and the model."""
    if not checkpoints:
        yield 0, inputs.checkpoint_name, inputs.encoder
        return
    place = "" if inputs.checkpoint_name == "." else f"{inputs.checkpoint_name}/"
    for seen, model in checkpoint_models(inputs.checkpoint):
        yield seen, f"{place}checkpoints/images-{seen:012d}", model


def _record(
    scores: list[SphereScore], inputs: ProbeInputs, centred: bool, name: str, seen: int, seeds: tuple[int, ...]
) -> None:
    """Add both measures of every block and time step to results.json."""
    for score in scores:
        protocol = {
            "name": "alignment_uniformity",
            "layer": score.layer,
            "timestep": score.timestep,
            "input": "noisy",
            "views": "two noisings of each image",
            "pooling": "mean of tokens",
            "features": "mean over images taken off, on the unit sphere" if centred else "on the unit sphere",
            "pairs": "all of different images, of the first noising",
            "exponent": 2,
            "autocast": None if inputs.dtype is None else "bfloat16",
        }
        for metric in ("alignment", "uniformity"):
            details = {"images_seen": seen} if seen else {}
            about = {"metric": metric, "seeds": seeds, "checkpoint": name, "n": score.n, "details": details}
            add_result(inputs.output_dir, inputs.result(getattr(score, metric), protocol, **about))


def _show(found: dict[int, list[SphereScore]], inputs: ProbeInputs, centred: bool) -> None:
    """Print the table and draw the pictures."""
    sweep = 0 not in found
    rows = [["images seen"] * sweep + ["layer", "t", "alignment", "uniformity"]]
    for seen, scores in found.items():
        for s in scores:
            shown = [str(s.layer), str(s.timestep), f"{s.alignment:.4f}", f"{s.uniformity:.4f}"]
            rows.append([f"{seen:,}"] * sweep + shown)
    print(table(rows))
    print(f"Of {scores[0].n:,} images without labels, at two noisings each; lower is better in both.")
    pictures = inputs.output_dir / "pictures"
    pictures.mkdir(exist_ok=True)
    of, suffix = (" (mean taken off)", "_centred") if centred else ("", "")
    drawn = {f"alignment{suffix}.png": sphere_map(next(reversed(found.values())), of)}
    if len(found) > 1:
        drawn[f"alignment{suffix}_course.png"] = sphere_course(found, of)
    for name, figure in drawn.items():
        FigureCanvasAgg(figure).print_png(pictures / name)
    print(f"Pictures: {', '.join(str(pictures / name) for name in drawn)}; added to {inputs.output_dir}/results.json")
