"""`ldae alignment CHECKPOINT`: alignment and uniformity of features by block and time step, and of each checkpoint."""

from collections.abc import Iterator
from typing import Any

from ldae.evaluation.alignment import SphereScore, default_timesteps, measure_alignment
from ldae.evaluation.images import fixed_subset
from ldae.reports.layer_maps import sphere_course, sphere_map
from ldae.results import Result
from ldae.shared_work import is_main
from ldae.training.run_folder import checkpoint_models
from ldae.verbs.inputs import ProbeInputs, open_inputs, table
from ldae.verbs.options.measure import AlignmentOptions


def alignment(options: AlignmentOptions) -> int:
    """Run `ldae alignment`."""
    inputs = open_inputs(options, every=not options.layers, noisy=True, labelled=False)
    timesteps = (options.timesteps and inputs.timesteps) or default_timesteps(inputs.encoder)
    layers = inputs.layers or ()
    source = fixed_subset(inputs.test_source, options.num_images, 0)
    images = inputs.image_set(source, options.forward_batch_size)
    print(f"Alignment and uniformity of {options.checkpoint}, {len(layers)} blocks x {len(timesteps)} t")
    print(f"images: {source.description}; on {inputs.device}")
    found: dict[int, list[SphereScore]] = {}
    for seen, name, model in _models(inputs, options.checkpoints):
        found[seen] = measure_alignment(
            model,
            images,
            layers=layers,
            timesteps=timesteps,
            seeds=options.seeds,
            centred=options.centred,
            chunk_size=options.chunk_size,
            device=inputs.device,
            dtype=inputs.dtype,
        )
        if is_main():  # at once, so that a sweep which is stopped keeps what it has measured
            _print(found[seen], seen)
            inputs.record(*_results(found[seen], inputs, options.centred, name, seen, options.seeds))
    if is_main():
        _draw(found, inputs, options.centred)
    return 0


def _models(inputs: ProbeInputs, checkpoints: bool) -> Iterator[tuple[int, str, Any]]:
    """Yield images seen (0 without a sweep), the name in results, and the model."""
    if not checkpoints:
        yield 0, inputs.checkpoint_name, inputs.encoder
        return
    place = "" if inputs.checkpoint_name == "." else f"{inputs.checkpoint_name}/"
    for seen, model in checkpoint_models(inputs.checkpoint):
        yield seen, f"{place}checkpoints/images-{seen:012d}", model


def _results(
    scores: list[SphereScore], inputs: ProbeInputs, centred: bool, name: str, seen: int, seeds: tuple[int, ...]
) -> Iterator[Result]:
    """Yield both measures of every block and time step."""
    for score in scores:
        protocol = {
            "name": "alignment_uniformity",
            "layer": score.layer,
            "timestep": score.timestep,
            "input": "noisy",
            "views": "two noisings of each image",
            "pooling": inputs.encoder.pooling,
            "features": "mean over images taken off, on the unit sphere" if centred else "on the unit sphere",
            "pairs": "all of different images, of the first noising",
            "exponent": 2,
            "autocast": None if inputs.dtype is None else "bfloat16",
        }
        for metric in ("alignment", "uniformity"):
            details = {"images_seen": seen} if seen else {}
            about = {"metric": metric, "seeds": seeds, "checkpoint": name, "n": score.n, "details": details}
            yield inputs.result(getattr(score, metric), protocol, **about)


def _print(scores: list[SphereScore], seen: int) -> None:
    """Print the table of a checkpoint."""
    rows = [["layer", "t", "alignment", "uniformity"]]
    rows += [[str(s.layer), str(s.timestep), f"{s.alignment:.4f}", f"{s.uniformity:.4f}"] for s in scores]
    print(f"\n{seen:,} images seen:\n{table(rows)}" if seen else table(rows))
    print(f"Of {scores[0].n:,} images without labels, at two noisings each; lower is better in both.")


def _draw(found: dict[int, list[SphereScore]], inputs: ProbeInputs, centred: bool) -> None:
    """Draw the pictures, and say where they and the numbers are."""
    of, suffix = (" (mean taken off)", "_centred") if centred else ("", "")
    drawn = {f"alignment{suffix}": sphere_map(next(reversed(found.values())), of)}
    if len(found) > 1:
        drawn[f"alignment{suffix}_course"] = sphere_course(found, of)
    inputs.draw("Pictures", **drawn)
