"""`ldae checkpoint_sweep RUN`: accuracy and FID of every checkpoint that a run kept, against images seen."""

import hashlib
from pathlib import Path
from typing import Any

from ldae.evaluation.checkpoint_sweep import (
    KNN,
    PROBES,
    SweepPoint,
    best_points,
    knn_scores,
    ridge_scores,
)
from ldae.evaluation.features import Features, extract_features
from ldae.evaluation.generation import GenerationScores, Sampling
from ldae.evaluation.images import ImageSet
from ldae.evaluation.linear_probe import ProbeSettings
from ldae.evaluation.probing import run_probe
from ldae.evaluation.protocol import HOLDOUT, Protocol
from ldae.pipelines.loading import build_pipeline
from ldae.reports.curves import checkpoint_course
from ldae.results import Result, read_results
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
    sweep = _Sweep(inputs, options, probes)
    inputs.show_header(f"Every checkpoint ({', '.join(sweep.measures)})")
    points: list[SweepPoint] = []
    for seen, model in models:
        points += sweep.measure(seen, model)
    if is_main():
        _report(points, inputs)
    return 0


class _Sweep:
    """Measurements of each checkpoint, of which results.json may have some already."""

    def __init__(self, inputs: ProbeInputs, options: CheckpointSweepOptions, probes: tuple[str, ...]) -> None:
        i, o = self.inputs, self.options = inputs, options
        self.probes = probes
        self.layer = i.only("layers", "must be one here; or see ldae alignment.")
        self.timestep = i.only("timesteps", "must be one here; or see ldae alignment.")
        self.scores: GenerationScores | None = None
        if o.num_scored:
            schedule = getattr(getattr(i.encoder, "config", None), "noise_schedule", None)
            if schedule in ("linear_sigma", "constant"):
                raise ValueError(
                    f"fid and kid say nothing with noise_schedule={schedule!r}: it never hides the image, so the "
                    "model did not learn to generate. Leave them out."
                )
            self.scores = open_scores(o, i.data, i.device)
        self.sampling = Sampling(steps=o.steps, sampler=o.sampler, seed=o.seed, batch_size=o.batch_size)
        self.seeds = tuple(o.seeds)
        rates = (1e-3, 1e-2, 1e-1)
        settings = ProbeSettings(o.epochs, 128, base_lr=2.0, lr_multipliers=rates, seeds=self.seeds)
        self.linear = Protocol("cached", i.layers, i.timesteps, horizontal_flip=o.horizontal_flip, settings=settings)
        self.reading = i.reading(o)
        source = i.train_source
        self.trained_on = {"train_split": source.split, "label_column": source.label_column}
        self.measures = [*probes, *(self.scores.metrics if self.scores else [])]
        self.images = i.image_sets(o.forward_batch_size)

    def measure(self, seen: int, model: Any) -> list[SweepPoint]:
        """All measures of one checkpoint; those that are new are added to results.json."""
        folder = RunFolder(self.inputs.checkpoint).checkpoints / f"images-{seen:012d}"
        place = "" if self.inputs.checkpoint_name == "." else f"{self.inputs.checkpoint_name}/"
        about = {"dataset": self.inputs.test_source.name, "checkpoint": f"{place}checkpoints/{folder.name}"}
        # That of the main process, for all: a run in progress may remove the checkpoint at any time.
        details = {"images_seen": seen, "weights_hash": gather_objects(_hash_of(folder))[0]}
        shared = about | details
        entries = main_first(lambda: read_results(self.inputs.output_dir))
        held = [e for e in entries if all(e.get(k) == v for k, v in shared.items())]
        points: dict[str, SweepPoint] = {}
        wanted: dict[str, tuple[str, str, dict[str, Any]]] = {name: self._asked(name) for name in self.probes}
        if self.scores:
            generation = self._asked_generation(self.scores, model)
            wanted |= {metric: (metric, self.scores.source.split, generation) for metric in self.scores.metrics}
        for name, (metric, split, protocol) in wanted.items():
            seed = (
                {"seeds": list(self.seeds)}
                if name == "linear"
                else {"seed": 0 if name in PROBES else self.options.seed}
            )
            keys = {"metric": metric, "split": split, **seed}
            # Those of earlier versions do not say what they were trained on.
            trained = self.trained_on if name in PROBES else {}
            found = [
                e for e in held if _is_of(e, keys, protocol) and all(e.get(k, v) == v for k, v in trained.items())
            ]
            if found:
                points[name] = SweepPoint(seen, name, found[-1]["value"], found[-1].get("held_out_value"))
        new = self._probe(model, [name for name in self.probes if name not in points], **about, details=details)
        if self.scores and any(name not in points for name in self.scores.metrics):
            pipeline = build_pipeline(model.to(self.inputs.device))
            pipeline.set_progress_bar_config(disable=True)
            generated, _ = self.scores.measure(pipeline, self.sampling, **about, details=details)
            new |= {result.metric: result for result in generated}
        if not is_main():
            return []
        for name, result in new.items():
            points[name] = SweepPoint(seen, name, result.value, result.details.get("held_out_value"))
        measured = ", ".join(f"{name} {result.value:.4f}" for name, result in new.items())  # before it is written
        print(f"{seen:,} images seen: {measured or 'in results.json already'}", flush=True)
        self.inputs.record(*new.values())
        return [points[name] for name in self.measures]

    def _asked(self, probe: str) -> tuple[str, str, dict[str, Any]]:
        """Metric, split and protocol of a probe, as far as the latter is known before it is made."""
        place = {"layer": self.layer, "timestep": self.timestep, "input": "clean"}
        own: dict[str, dict[str, Any]] = {
            "ridge": {"name": "ridge", "holdout": HOLDOUT, "autocast": self.options.mixed_precision},
            "knn": {"name": "knn", **KNN, "similarity": "cosine", "autocast": self.options.mixed_precision},
            "linear": {
                "name": "linear",
                "preset": "cached",
                "epochs": self.options.epochs,
                "augmentation": self.linear.augmentation,
                "autocast": None if self.options.mixed_precision == "no" else self.options.mixed_precision,
            },
        }
        return "accuracy", self.inputs.test_source.split, own[probe] | place

    def _asked_generation(self, scores: GenerationScores, model: Any) -> dict[str, Any]:
        """Return the protocol of FID and KID, as far as it is known before they are measured."""
        pipeline, sampler = build_pipeline(model), self.sampling.sampler
        asked = {
            "name": "generation",
            "extractor": scores.extractor.name,
            "sampler": pipeline.describe_sampler(sampler, 0.0),
            "steps": self.sampling.steps or pipeline.steps_by_default(sampler),
            "guidance_scale": 1.0,
            "weights": scores.weights,
        }
        return asked | ({} if scores.num_reference is None else {"reference_images": scores.num_reference})

    def _probe(self, encoder: Any, names: list[str], *, details: dict[str, Any], **about: Any) -> dict[str, Result]:
        """Probe one checkpoint by some of the probes, by name."""
        results: dict[str, Result] = {}
        details = details | self.trained_on
        if set(names) & {"ridge", "knn"}:
            train, test = (self._features(encoder, images) for images in self.images)
        for name in names:
            if name == "linear":
                found = run_probe(encoder, *self._sources, self.linear, **self.reading)
                if not is_main():
                    continue
                own = {**details, "held_out_value": found.probes.held_out_score(0)}
                autocast = {key: value for key, value in self._asked(name)[2].items() if key == "autocast" and value}
                results[name] = found.result(0, autocast, **self.inputs.about | about, details=own)
                continue
            if not is_main():
                continue
            scores = ridge_scores(train, test) if name == "ridge" else knn_scores(train, test, self.inputs.device)
            held_out, value = scores
            protocol = {
                **self._asked(name)[2],
                "pooling": self.inputs.encoder.pooling,
                "train_images": len(train.classes),
            }
            own = {**details, "held_out_value": held_out}
            results[name] = self.inputs.result(value, protocol, **about, n=len(test.classes), details=own)
        return results

    @property
    def _sources(self) -> tuple[Any, Any]:
        return self.inputs.train_source, self.inputs.test_source

    def _features(self, encoder: Any, images: ImageSet) -> Features:
        return extract_features(
            encoder,
            images.batches(),
            layers=self.inputs.layers,
            timesteps=self.inputs.timesteps,
            device=self.inputs.device,
            dtype=self.inputs.dtype,
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


def _is_of(entry: dict[str, Any], keys: dict[str, Any], protocol: dict[str, Any]) -> bool:
    """Return `True` if a result is what would be measured."""
    return all(entry.get(k) == v for k, v in keys.items()) and all(
        entry["protocol"].get(k) == v for k, v in protocol.items()
    )


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
