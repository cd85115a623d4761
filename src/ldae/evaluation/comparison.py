"""A trained encoder beside what it must beat: the same network untrained, pooled PCA coefficients, raw pixels."""

from dataclasses import dataclass
from typing import Any

import torch

from ldae.data import Batch

from .encoder import Layer, as_encoder, baselines_of
from .features import Features, extract_features
from .grid_probes import Part
from .grid_protocols import describe_logistic
from .knn import knn_accuracy
from .linear_probe import LinearProbes, ProbeSettings, train_linear_probes
from .logistic import fit_logistic_grid
from .metrics import mean_and_stderr
from .probe_features import HOLDOUT, SPLIT_SEED
from .rate_search import is_at_edge, search_rates
from .ridge import few_shot_ridge, split_holdout
from .ridge_grid import fit_ridge_grid


PROBES = ("logistic", "adam", "ridge")


@dataclass(frozen=True)
class ComparedFeatures:
    """Accuracies of one kind of features: few-shot ridge (mean and standard error over draws) and kNN."""

    name: str
    few_shot: float
    few_shot_stderr: float | None
    knn: float | None


@dataclass(frozen=True)
class ComparedProbe:
    """
    Linear-probe accuracy of one kind of features, its standard error over the seeds of Adam's probes, and `protocol`,
    how the probe was fitted, as results.json keeps it.
    """

    name: str
    accuracy: float
    stderr: float | None
    protocol: dict[str, Any]


def feature_sets(
    model: Any,
    train: list[Batch],
    test: list[Batch],
    *,
    layer: Layer | None = None,
    timestep: int | None = None,
    noisy: bool = False,
) -> dict[str, tuple[Features, ...]]:
    """
    The encoder's features and those it is compared with: the same network untrained, raw pixels, and of an l-DAE what its
    tokenizer gives.

    Args:
        model (`PreTrainedModel`): Trained: an l-DAE, a DDAE or another model of `AutoModel`.
        train, test (`list[Batch]`): uint8 images with labels.
        layer (`int` or `str`, *optional*), timestep (`int`, *optional*), noisy (`bool`, defaults to `False`): The one
            block, time step and input, of the encoder and its untrained twin, as of
            [`~ldae.evaluation.features.extract_features`]; by default the model's own choice.

    Returns:
        `dict` from a name to the features of both parts.
    """
    encoder = as_encoder(model)
    choice: dict[str, Any] = {
        "layers": None if layer is None else [layer],
        "timesteps": None if timestep is None else [timestep],
        "noisy": noisy,
    }
    encoders = {"trained encoder": encoder} | {other.name: other for other in baselines_of(encoder)}
    return {
        name: tuple(extract_features(each, part, **(choice if each.has_choices else {})) for part in (train, test))
        for name, each in encoders.items()
    }


def compare_few_shot(
    model: Any,
    train: list[Batch],
    test: list[Batch],
    *,
    shots: int = 5,
    draws: int = 20,
    knn: bool = True,
    **choice: Any,
) -> list[ComparedFeatures]:
    """
    Few-shot ridge and kNN accuracies of the encoder and what it is compared with; all see the same draws.

    Args:
        model, train, test, **choice: As of [`feature_sets`].
        shots (`int`, defaults to 5): Labels of each class that the ridge probe sees.
        draws (`int`, defaults to 20): How often they are drawn.
        knn (`bool`, defaults to `True`): Whether the kNN accuracy is computed too.

    Returns:
        `list[ComparedFeatures]`. kNN sees all labels of `train`: the two columns do not compare.
    """
    compared = []
    for name, (fitted, scored) in feature_sets(model, train, test, **choice).items():
        data = (fitted.flat[:, 0], fitted.classes, scored.flat[:, 0], scored.classes)
        mean, stderr = mean_and_stderr(few_shot_ridge(*data, shots=shots, draws=draws))
        compared.append(ComparedFeatures(name, mean, stderr, knn_accuracy(*data) if knn else None))
    return compared


def compare_linear(
    model: Any,
    train: list[Batch],
    test: list[Batch],
    probe: str = "logistic",
    settings: ProbeSettings | None = None,
    **choice: Any,
) -> list[ComparedProbe]:
    """
    Compute linear-probe accuracies of the encoder and what it is compared with, on centre crops' features computed
    once.

    Args:
        model, train, test, **choice: As of [`feature_sets`].
        probe (`str`, defaults to `"logistic"`): `"logistic"` is solved until it has converged, `"ridge"` has a closed
            form, `"adam"` trains as the papers do. Each kind of features has its penalty or learning rate chosen on
            the same tenth of `train`, which is held out.
        settings ([`ProbeSettings`], *optional*): How Adam's probes train.

    Returns:
        `list[ComparedProbe]`.

    Raises:
        ValueError: If the probe is unknown.
    """
    if probe not in PROBES:
        raise ValueError(f"probe={probe!r} must be one of {', '.join(PROBES)}.")
    compared = []
    for name, (fitted, scored) in feature_sets(model, train, test, **choice).items():
        labels = fitted.classes
        kept, held = split_holdout(len(labels), HOLDOUT, SPLIT_SEED)
        parts = ((fitted.flat[kept], labels[kept]), (fitted.flat[held], labels[held]), (scored.flat, scored.classes))
        num_classes = int(torch.maximum(labels.max(), scored.classes.max())) + 1
        if probe == "adam":
            found = _compare_adam(*parts, num_classes=num_classes, settings=settings or ProbeSettings())
        elif probe == "ridge":
            ridge = fit_ridge_grid(*parts, num_classes=num_classes)
            found = (float(ridge.test[0]), None, {"name": "ridge", "penalty": float(ridge.penalty[0])})
        else:
            logistic = fit_logistic_grid(*parts, num_classes=num_classes, names=[name])
            details = {"name": "logistic", "penalty": float(logistic.penalty[0]), **describe_logistic(logistic, 0)}
            found = (float(logistic.test[0]), None, details)
        accuracy, stderr, protocol = found
        compared.append(ComparedProbe(name, accuracy, stderr, {**protocol, "augmentation": [], "holdout": HOLDOUT}))
    return compared


def _compare_adam(
    fitted: Part, held: Part, test: Part, *, num_classes: int, settings: ProbeSettings
) -> tuple[float, float | None, dict[str, Any]]:
    """Return accuracy, standard error and protocol of Adam's probe at its chosen learning rate."""
    features, labels = fitted

    def train(chosen: ProbeSettings) -> LinearProbes:
        return train_linear_probes(lambda epoch: features, labels, num_classes=num_classes, settings=chosen)

    settings, _, report = search_rates(train, settings, held, *test)
    rate = report.lr_index[0]
    mean, stderr = mean_and_stderr(report.test_accuracy[:, 0, rate].tolist())
    protocol = {
        "name": "linear",
        "epochs": settings.epochs,
        "learning_rate": settings.learning_rates(len(labels))[rate],
        "learning_rate_at_edge": is_at_edge(settings, rate),
        "batch_norm": "without affine" if settings.batch_norm else "none",
    }
    return mean, stderr, protocol
