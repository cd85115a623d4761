"""Ridge and logistic probes of a model on a data set, from images to accuracies, on features computed once."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch

from ldae.data import ImageSource

from .encoder import Layer
from .grid_probes import GridProbes
from .logistic import LOGISTIC_PENALTIES, MAX_ITERATIONS, TOLERANCE, LogisticProbes, fit_logistic_grid
from .probe_features import HOLDOUT, ProbeFeatures, Reading, compute_features
from .protocol import Protocol
from .ridge import RIDGE_PENALTIES
from .ridge_grid import RidgeProbes, fit_ridge_grid


@dataclass(frozen=True)
class GridResult:
    """
    Probes of every chosen block and time step, whose penalties were chosen on held-out images.

    Args:
        protocol ([`~ldae.evaluation.protocol.Protocol`]): Which features were probed.
        columns (`list[tuple]`): (layer, timestep) of the F feature sets.
        probes ([`~ldae.evaluation.grid_probes.GridProbes`]): Their probes, with accuracies.
        num_train (`int`): Training images, those that chose among them.
        num_test (`int`): Test images.
    """

    name: ClassVar[str]
    penalties: ClassVar[tuple[float, ...]]

    protocol: Protocol
    columns: list[tuple[Layer | None, int | None]]
    probes: GridProbes
    num_train: int
    num_test: int

    @property
    def best(self) -> int:
        """Index of the feature set that held-out images chose."""
        return self.probes.best

    def score(self, feature_index: int) -> tuple[float, float | None]:
        """Return the test accuracy of a feature set; there is nothing random in it, hence no standard error."""
        return float(self.probes.test[feature_index]), None

    def held_out(self, feature_index: int) -> float:
        """Return the held-out accuracy at the chosen penalty, of the probe that had not seen the held-out images."""
        return float(self.probes.held_out[feature_index])

    def folded(self, feature_index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a feature set's probe as a linear layer: `(weight (K, C), bias (K,))`."""
        return self.probes.folded(feature_index)

    def describe(self, feature_index: int) -> dict[str, Any]:
        """Describe the protocol of one feature set's score in full, as results.json keeps it."""
        return {
            "name": self.name,
            **self.protocol.describe_features(*self.columns[feature_index]),
            "penalty": float(self.probes.penalty[feature_index]),
            "penalties_tried": list(self.penalties),
            **self.describe_solution(feature_index),
            "augmentation": ["horizontal_flip"] if self.protocol.horizontal_flip else [],
            "train_images": self.num_train,
            "holdout": HOLDOUT,
        }

    def describe_solution(self, feature_index: int) -> dict[str, Any]:
        """Describe how the probe was solved, beyond its penalty."""
        return {}


@dataclass(frozen=True)
class RidgeGridResult(GridResult):
    """Closed-form ridge probes; see [`GridResult`]."""

    name = "ridge"
    penalties = RIDGE_PENALTIES

    probes: RidgeProbes


@dataclass(frozen=True)
class LogisticGridResult(GridResult):
    """Converged logistic probes; see [`GridResult`]."""

    name = "logistic"
    penalties = LOGISTIC_PENALTIES

    probes: LogisticProbes

    def describe_solution(self, feature_index: int) -> dict[str, Any]:
        """Describe optimiser, stopping rule and whether it was reached."""
        return describe_logistic(self.probes, feature_index)


R = TypeVar("R", bound=GridResult)


def describe_logistic(probes: LogisticProbes, feature_index: int) -> dict[str, Any]:
    """Describe how a logistic probe was solved, as results.json keeps it."""
    return {
        "optimizer": "Newton-CG",
        "tolerance": TOLERANCE,
        "max_iterations": MAX_ITERATIONS,
        "converged": bool(probes.converged[feature_index]),
        "iterations": int(probes.iterations[feature_index]),
        "standardised": True,
    }


def run_ridge_grid(
    model: Any,
    train_source: ImageSource,
    test_source: ImageSource,
    protocol: Protocol,
    **reading: Any,
) -> RidgeGridResult:
    """
    Fit a ridge probe of every chosen block and time step in closed form, on features computed once.

    A tenth of the training images, the same as in [`~ldae.evaluation.protocols.run_linear_probe`], chooses the penalty
    of each; the probe is then fitted to them too. With `protocol.horizontal_flip` mirror images of the others count as
    images of their own.

    Args:
        model, train_source, test_source, **reading: As of [`~ldae.evaluation.protocols.run_linear_probe`].
        protocol ([`~ldae.evaluation.protocol.Protocol`]): Of name "cached"; its `settings` mean nothing here.

    Returns:
        [`RidgeGridResult`].

    Raises:
        ValueError: If the protocol has another name, labels are missing, or a block or time step does not exist.
    """
    found = _compute(model, train_source, test_source, protocol, reading, "ridge")
    return _finish(RidgeGridResult, protocol, found, fit_ridge_grid)


def run_logistic_grid(
    model: Any,
    train_source: ImageSource,
    test_source: ImageSource,
    protocol: Protocol,
    **reading: Any,
) -> LogisticGridResult:
    """
    Fit a converged logistic probe of every chosen block and time step, on features computed once.

    Images, held-out tenth and mirror images are those of [`run_ridge_grid`]; see
    [`~ldae.evaluation.logistic.fit_logistic_grid`] for the objective and the stopping rule.

    Args:
        model, train_source, test_source, **reading: As of [`~ldae.evaluation.protocols.run_linear_probe`].
        protocol ([`~ldae.evaluation.protocol.Protocol`]): Of name "cached"; its `settings` mean nothing here.

    Returns:
        [`LogisticGridResult`].

    Raises:
        ValueError: If the protocol has another name, labels are missing, a block or time step does not exist, or
            features are NaN or infinite.
    """
    found = _compute(model, train_source, test_source, protocol, reading, "logistic")
    names = [f"layer {layer}, t = {timestep}" for layer, timestep in found.columns]

    def fit(*parts: Any, num_classes: int) -> LogisticProbes:
        return fit_logistic_grid(*parts, num_classes=num_classes, names=names)

    return _finish(LogisticGridResult, protocol, found, fit)


def _compute(
    model: Any,
    train_source: ImageSource,
    test_source: ImageSource,
    protocol: Protocol,
    reading: dict[str, Any],
    probe: str,
) -> ProbeFeatures:
    if protocol.name != "cached":
        raise ValueError(f"protocol={protocol.name!r} must be cached with {probe} probes, which have no epochs.")
    return compute_features(
        model, train_source, test_source, protocol, Reading(**reading), choosing=lambda num_sets: True
    )


def _finish(kind: type[R], protocol: Protocol, found: ProbeFeatures, fit: Callable[..., GridProbes]) -> R:
    probes = fit(
        (found.every_view, found.every_label),
        (found.held, found.held_labels),
        (found.test, found.test_labels),
        num_classes=found.num_classes,
    )
    num_train = len(found.fitted_labels) + len(found.held_labels)
    return kind(protocol, found.columns, probes, num_train, len(found.test_labels))
