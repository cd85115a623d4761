"""Measure the checkpoints of a run, each once: probes of their features, FID and KID of the images they generate."""

from dataclasses import dataclass
from typing import Any

import torch

from ldae.data import ImageSource
from ldae.pipelines.loading import build_pipeline
from ldae.results import Result
from ldae.shared_work import is_main

from .features import Features, extract_features
from .generation import GenerationScores, Sampling
from .images import ImageSet
from .knn import knn_accuracy, similarity
from .probing import probe_features, run_probe
from .protocol import HOLDOUT, Protocol, split_holdout


PROBES = ("ridge", "knn", "linear")
KNN = {"k": 20, "temperature": 0.07}


@dataclass(frozen=True)
class SweepPoint:
    """One measure of one checkpoint.

    Args:
        images_seen (`int`): Images that the checkpoint was trained on.
        measure (`str`): "ridge", "knn", "linear" (accuracies, higher is better), or "FID-N", "KID-N" (lower is
            better).
        value (`float`): Accuracy on the test set, or distance to the reference images.
        held_out (`float`, *optional*): For an accuracy, that on held-out training images, which choose the best
            checkpoint.
    """

    images_seen: int
    measure: str
    value: float
    held_out: float | None = None

    @property
    def goodness(self) -> float:
        """Value that ranks checkpoints, higher is better; accuracies on the test set play no part in it."""
        return -self.value if self.held_out is None else self.held_out


@dataclass(frozen=True)
class CheckpointSweep:
    """The same measures for every checkpoint of a run.

    Args:
        train_source, test_source (`ImageSource`): The images, with labels if there are probes.
        images (`tuple[ImageSet, ImageSet]`): Both, decoded at the model's size.
        probes (`tuple[str, ...]`): Some of `PROBES`.
        linear ([`~ldae.evaluation.protocol.Protocol`]): Protocol of the linear probe. Its one layer and time step, or
            `None`, are those of all probes.
        pooling (`str`): How the encoder pools its features.
        reading (`dict`): Keyword arguments of [`~ldae.evaluation.protocol.compute_features`] that say how images are
            read.
        scores ([`~ldae.evaluation.generation.GenerationScores`], *optional*): FID and KID.
        sampling ([`~ldae.evaluation.generation.Sampling`]): How images are generated.
    """

    train_source: ImageSource
    test_source: ImageSource
    images: tuple[ImageSet, ImageSet]
    probes: tuple[str, ...]
    linear: Protocol
    pooling: str
    reading: dict[str, Any]
    scores: GenerationScores | None
    sampling: Sampling

    @property
    def measures(self) -> list[str]:
        """Names of what is measured."""
        return [*self.probes, *(self.scores.metrics if self.scores else [])]

    def measure(
        self, seen: int, model: Any, entries: list[dict[str, Any]], *, checkpoint: str, weights_hash: str
    ) -> tuple[list[SweepPoint], dict[str, Result]]:
        """Measure a checkpoint, except for what was measured before.

        Args:
            seen (`int`): Images seen by the checkpoint.
            model (`PreTrainedModel`): The checkpoint as a model for pre-training.
            entries (`list[dict]`): Entries that results.json already has.
            checkpoint (`str`): Name of the checkpoint in results.
            weights_hash (`str`): Hash of its weights, since a run that was started anew has checkpoints of the same
                names.

        Returns:
            The points of all measures in their order, and the new results by measure. Where several processes share
            the work, both are empty outside the main process.
        """
        about = {"dataset": self.test_source.name, "checkpoint": checkpoint}
        details: dict[str, Any] = {"images_seen": seen, "weights_hash": weights_hash}
        held = [e for e in entries if all(e.get(key) == value for key, value in (about | details).items())]
        of_measure = {name: [e for e in held if self._is_of(e, name, model)] for name in self.measures}
        missing = [name for name in self.measures if not of_measure[name]]
        new = self._probe([name for name in missing if name in self.probes], model, about, details)
        if self.scores and set(missing) - set(self.probes):
            pipeline = build_pipeline(model.to(self.reading["device"]))
            pipeline.set_progress_bar_config(disable=True)
            generated, _ = self.scores.measure(pipeline, self.sampling, **about, details=details)
            new |= {result.metric: result for result in generated}
        if not is_main():
            return [], {}
        found = {name: new[name].entry() if name in new else of_measure[name][-1] for name in self.measures}
        return [SweepPoint(seen, name, e["value"], e.get("held_out_value")) for name, e in found.items()], new

    def _probe(
        self, names: list[str], model: Any, about: dict[str, Any], details: dict[str, Any]
    ) -> dict[str, Result]:
        """Probe a checkpoint; only the main process gets results."""
        results: dict[str, Result] = {}
        if set(names) & {"ridge", "knn"}:  # both probe the same features
            train, test = (self._features(model, images) for images in self.images)
        about, sources = about | {"split": self.test_source.split}, (self.train_source, self.test_source)
        for name in names:
            found = run_probe(model, *sources, self.linear, **self.reading) if name == "linear" else None
            if not is_main():
                continue
            protocol, own = self._protocol(name), details | self._trained_on
            if found is not None:
                own["held_out_value"] = found.probes.held_out_score(0)
                autocast = {key: value for key, value in protocol.items() if key == "autocast" and value is not None}
                results[name] = found.result(0, autocast, **about, details=own)
                continue
            scores = ridge_scores(train, test) if name == "ridge" else knn_scores(train, test, self.reading["device"])
            own["held_out_value"], value = scores
            protocol |= {"pooling": self.pooling, "train_images": len(train.classes)}
            results[name] = Result("accuracy", value, protocol=protocol, **about, n=len(test.classes), details=own)
        return results

    def _features(self, model: Any, images: ImageSet) -> Features:
        places: dict[str, Any] = {"layers": self.linear.layers, "timesteps": self.linear.timesteps}
        reading: dict[str, Any] = {name: self.reading[name] for name in ("device", "dtype")}
        return extract_features(model, images.batches(), **places, **reading)

    @property
    def _trained_on(self) -> dict[str, Any]:
        """Training split and label column of the probes, which their protocols do not name."""
        return {"train_split": self.train_source.split, "label_column": self.train_source.label_column}

    def _is_of(self, entry: dict[str, Any], name: str, model: Any) -> bool:
        """Return `True` if an entry of results.json holds what would be measured."""
        keys: dict[str, Any] = {"metric": name, "seed": self.sampling.seed}
        if self.scores and name not in self.probes:
            keys["split"], protocol = self.scores.source.split, self._generation_protocol(self.scores, model)
        else:
            keys |= {"metric": "accuracy", "split": self.test_source.split, "seed": 0}
            protocol = self._protocol(name)
            if any(entry.get(key, value) != value for key, value in self._trained_on.items()):
                return False  # earlier versions did not say
        if name == "linear":
            keys["seed"], keys["seeds"] = None, list(self.linear.settings.seeds)
        return all(entry.get(key) == value for key, value in keys.items()) and all(
            entry["protocol"].get(key) == value for key, value in protocol.items()
        )

    def _protocol(self, probe: str) -> dict[str, Any]:
        """Return the protocol of a probe, as far as it is known before the probe is fitted."""
        precision = "no" if self.reading["dtype"] is None else "bf16"
        own: dict[str, dict[str, Any]] = {
            "ridge": {"name": "ridge", "holdout": HOLDOUT, "autocast": precision},
            "knn": {"name": "knn", **KNN, **similarity(None), "autocast": precision},
            "linear": {
                "name": "linear",
                "preset": self.linear.name,
                "epochs": self.linear.settings.epochs,
                "augmentation": self.linear.augmentation,
                "autocast": None if precision == "no" else precision,
            },
        }
        layer, timestep = (values and values[0] for values in (self.linear.layers, self.linear.timesteps))
        return own[probe] | {"layer": layer, "timestep": timestep, "input": "clean"}

    def _generation_protocol(self, scores: GenerationScores, model: Any) -> dict[str, Any]:
        """Return the protocol of FID and KID, as far as it is known before they are measured."""
        pipeline, sampler = build_pipeline(model), self.sampling.sampler
        asked = {
            "name": "generation",
            **scores.extractor.protocol,
            "sampler": pipeline.describe_sampler(sampler, 0.0),
            "steps": self.sampling.steps or pipeline.steps_by_default(sampler),
            "guidance_scale": 1.0,
            "weights": scores.weights,
        }
        return asked | ({} if scores.num_reference is None else {"reference_images": scores.num_reference})


def best_points(points: list[SweepPoint]) -> dict[str, SweepPoint]:
    """Find the best checkpoint by each measure: by the held-out value of accuracies, and by distances themselves.

    Example:
        >>> early, late = SweepPoint(100, "knn", 0.7, held_out=0.8), SweepPoint(200, "knn", 0.75, held_out=0.7)
        >>> distances = [SweepPoint(100, "FID-50", 9.0), SweepPoint(200, "FID-50", 5.0)]
        >>> best_points([early, late, *distances])["FID-50"].images_seen
        200
        >>> best_points([early, late])["knn"].images_seen
        100
    """
    measures = dict.fromkeys(point.measure for point in points)
    return {name: max((p for p in points if p.measure == name), key=lambda p: p.goodness) for name in measures}


def knn_scores(train: Features, test: Features, device: torch.device) -> tuple[float, float]:
    """Compute the accuracies of weighted kNN on held-out training images and on the test set."""
    x, y = train.flat[:, 0].to(device), train.classes
    fitted, held = split_holdout(len(y))
    settings: dict[str, Any] = {**KNN, "k": min(KNN["k"], len(fitted))}
    held_out = knn_accuracy(x[fitted], y[fitted], x[held], y[held], **settings)
    return held_out, knn_accuracy(x, y, test.flat[:, 0], test.classes, **settings)


def ridge_scores(train: Features, test: Features) -> tuple[float, float]:
    """Compute a ridge probe's accuracy on held-out training images, which chose its penalty, and on the test set."""
    probes = probe_features("ridge", train, test)
    return probes.held_out_score(0), probes.score(0)[0]
