"""`ldae checkpoint_sweep RUN`: accuracy and FID of every checkpoint that a run kept, against images seen."""

import hashlib
from pathlib import Path

from ldae.evaluation.checkpoint_sweep import PROBES, CheckpointSweep, SweepPoint, best_points
from ldae.evaluation.generation import Sampling
from ldae.evaluation.linear_probe import ProbeSettings
from ldae.evaluation.protocol import Protocol
from ldae.reports.curves import checkpoint_course
from ldae.results import read_results
from ldae.shared_work import gather_objects, is_main, main_first
from ldae.training.run_folder import RunFolder, checkpoint_models
from ldae.verbs.inputs import ProbeInputs, open_inputs, open_scores, table
from ldae.verbs.options.measure import CheckpointSweepOptions


def checkpoint_sweep(options: CheckpointSweepOptions) -> int:
    """Run `ldae checkpoint_sweep`."""
    probes: tuple[str, ...] = tuple(name for name in dict.fromkeys(options.probes) if name != "none")
    if not probes and not options.num_scored:
        raise ValueError("probes=none without fid or kid leaves nothing to measure; give --fid N or --probes ridge.")
    models = checkpoint_models(options.checkpoint)
    inputs = open_inputs(options, labelled=bool(probes))
    sweep = _open_sweep(inputs, options, probes)
    inputs.show_header(f"Every checkpoint ({', '.join(sweep.measures)})")
    place = "" if inputs.checkpoint_name == "." else f"{inputs.checkpoint_name}/"
    points: list[SweepPoint] = []
    for seen, model in models:
        folder = RunFolder(inputs.checkpoint).checkpoints / f"images-{seen:012d}"
        # That of the main process, for all: a run in progress may remove the checkpoint at any time.
        weights_hash = gather_objects(_hash_of(folder))[0]
        entries = main_first(lambda: read_results(inputs.output_dir))
        about = {"checkpoint": f"{place}checkpoints/{folder.name}", "weights_hash": weights_hash}
        found, new = sweep.measure(seen, model, entries, **about)
        if is_main():
            measured = ", ".join(f"{name} {result.value:.4f}" for name, result in new.items())
            print(f"{seen:,} images seen: {measured or 'in results.json already'}", flush=True)  # before it is written
            inputs.record(*new.values())
        points += found
    if is_main():
        _report(points, inputs)
    return 0


def _open_sweep(inputs: ProbeInputs, options: CheckpointSweepOptions, probes: tuple[str, ...]) -> CheckpointSweep:
    """Open what the measures of all checkpoints have in common."""
    for name in ("layers", "timesteps"):
        inputs.only(name, "must be one here; or see ldae alignment.")
    schedule = getattr(getattr(inputs.encoder, "config", None), "noise_schedule", None)
    if options.num_scored and schedule in ("linear_sigma", "constant"):
        raise ValueError(
            f"fid and kid say nothing with noise_schedule={schedule!r}: it never hides the image, so the model did "
            "not learn to generate. Leave them out."
        )
    rates = (1e-3, 1e-2, 1e-1)
    settings = ProbeSettings(options.epochs, 128, base_lr=2.0, lr_multipliers=rates, seeds=tuple(options.seeds))
    place, flip = (inputs.layers, inputs.timesteps), options.horizontal_flip
    return CheckpointSweep(
        inputs.train_source,
        inputs.test_source,
        inputs.image_sets(options.forward_batch_size),
        probes,
        Protocol("cached", *place, horizontal_flip=flip, settings=settings),
        pooling=inputs.encoder.pooling,
        reading=inputs.reading(options),
        scores=open_scores(options, inputs.data, inputs.device) if options.num_scored else None,
        sampling=Sampling(
            steps=options.steps, sampler=options.sampler, seed=options.seed, batch_size=options.batch_size
        ),
    )


def _hash_of(checkpoint: Path) -> str:
    """Hash the weights that are measured: a run that was started anew has checkpoints of the same names."""
    average = checkpoint / "ema.safetensors"
    whole = average if average.exists() else checkpoint / "model.safetensors"
    digests = []
    for path in [whole] if whole.exists() else sorted(checkpoint.glob("shard-*.safetensors")):
        with open(path, "rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest()[:16])
    return "-".join(digests)


def _report(points: list[SweepPoint], inputs: ProbeInputs) -> None:
    """Print a row for each checkpoint and draw the picture."""
    best = best_points(points)
    accuracies = [name for name in best if name in PROBES]
    head = [part for name in best for part in ([name, "held-out"] if name in PROBES else [name])]
    rows = [["images seen", *head]]
    for seen in dict.fromkeys(point.images_seen for point in points):
        row = [f"{seen:,}"]
        for point in (p for p in points if p.images_seen == seen):
            star = " *" if point == best[point.measure] else ""
            if point.held_out is None:
                row.append(f"{point.value:.4f}{star}")
            else:
                row += [f"{point.value:.2%}{star}", f"{point.held_out:.2%}"]
        rows.append(row)
    print(table(rows))
    choice = "by the held-out tenth of the training images, not by the test set" if accuracies else ""
    print(f"* is the best of its column{', an accuracy ' + choice if choice else ''}.")
    inputs.draw("Picture", checkpoint_sweep=checkpoint_course(points))
