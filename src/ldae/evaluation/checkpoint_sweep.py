"""Scores of a run's checkpoints: probes of their features, with the held-out scores that compare checkpoints."""

from dataclasses import dataclass
from typing import Any

import torch

from .features import Features
from .knn import knn_accuracy
from .probing import probe_features
from .protocol import split_holdout


PROBES = ("ridge", "knn", "linear")
KNN = {"k": 20, "temperature": 0.07}


@dataclass(frozen=True)
class SweepPoint:
    """One measure of one checkpoint.

    Args:
        images_seen (`int`): By the checkpoint.
        measure (`str`): "ridge", "knn", "linear" (accuracies, higher is better), or "FID-N", "KID-N" (lower is
            better).
        value (`float`): On the test set, or against the reference images.
        held_out (`float`, *optional*): Of an accuracy: on held-out training images, which choose the best checkpoint.
    """

    images_seen: int
    measure: str
    value: float
    held_out: float | None = None

    @property
    def goodness(self) -> float:
        """Value by which checkpoints compare, greater is better; the test set takes no part in it."""
        return -self.value if self.held_out is None else self.held_out


def best_points(points: list[SweepPoint]) -> dict[str, SweepPoint]:
    """Find the best checkpoint by each measure: accuracies by their held-out value, distances by themselves.

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
