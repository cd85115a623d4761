"""Probing of a model on a data set, from images to accuracies: linear probes by Adam, and the probes of a grid."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from ldae.data import ImageSource

from .encoder import Layer, as_encoder
from .grid_protocols import GridResult, LogisticGridResult, RidgeGridResult, run_logistic_grid, run_ridge_grid
from .linear_probe import LinearProbes, ProbeReport, ProbeSettings, train_linear_probes
from .metrics import mean_and_stderr
from .probe_features import HOLDOUT, Reading, compute_features
from .protocol import PROTOCOLS, Protocol
from .rate_search import is_at_edge, search_rates


__all__ = [
    "PROTOCOLS",
    "GridResult",
    "LinearProbeResult",
    "LogisticGridResult",
    "Protocol",
    "RidgeGridResult",
    "run_linear_probe",
    "run_logistic_grid",
    "run_ridge_grid",
]


@dataclass(frozen=True)
class LinearProbeResult:
    """
    What [`run_linear_probe`] found.

    `columns` are the (layer, timestep) of the F feature sets; `report` has every probe's accuracy and the choice;
    `num_train`, `num_test` count images; `holdout` is the share that chose, 0 where there was nothing to choose.
    `protocol.settings` has the learning rates that were tried, with those by which the grid was extended.
    """

    protocol: Protocol
    columns: list[tuple[Layer | None, int | None]]
    probes: LinearProbes
    report: ProbeReport
    num_train: int
    num_test: int
    holdout: float

    def score(self, feature_index: int) -> tuple[float, float | None]:
        """Mean and standard error over seeds of a feature set's test accuracy, at its chosen learning rate."""
        rate = self.report.lr_index[feature_index]
        return mean_and_stderr(self.report.test_accuracy[:, feature_index, rate].tolist())

    def held_out(self, feature_index: int) -> float | None:
        """Mean over seeds of a feature set's held-out accuracy at that rate; `None` where nothing was held out."""
        if self.report.choice_accuracy is None:
            return None
        rate = self.report.lr_index[feature_index]
        return float(self.report.choice_accuracy[:, feature_index, rate].mean())

    @property
    def best(self) -> int:
        """Index of the feature set that held-out images chose."""
        return self.report.feature_index

    def folded(self, feature_index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The first seed's probe of a feature set, at that rate, as a linear layer: `(weight (K, C), bias (K,))`."""
        return self.probes.folded(0, feature_index, self.report.lr_index[feature_index])

    def describe(self, feature_index: int) -> dict[str, Any]:
        """The protocol of one feature set's score in full, as results.json keeps it."""
        settings, rate = self.protocol.settings, self.report.lr_index[feature_index]
        resized = self.protocol.crop == "resized"
        augmentation = []
        if self.protocol.name == "paper":
            augmentation = ["random_resized_crop" if resized else "random_crop"]
        augmentation += ["horizontal_flip"] if self.protocol.horizontal_flip else []
        return {
            "name": "linear",
            **self.protocol.describe_features(*self.columns[feature_index]),
            "batch_norm": "without affine" if settings.batch_norm else "none",
            "optimizer": "Adam",
            "weight_decay": 0.0,
            "learning_rate": settings.learning_rates(self.num_train)[rate],
            "learning_rates_tried": settings.learning_rates(self.num_train),
            "learning_rate_at_edge": is_at_edge(settings, rate),
            "max_lr_extensions": settings.max_lr_extensions,
            "schedule": "cosine",
            "batch_size": settings.batch_size_for(self.num_train),
            "epochs": settings.epochs,
            "augmentation": augmentation,
            "crop_scale": list(self.protocol.crop_scale) if "random_resized_crop" in augmentation else None,
            **({"crop_padding": self.protocol.crop_padding} if "random_crop" in augmentation else {}),
            "train_images": self.num_train,
            "holdout": self.holdout,
        }


def run_linear_probe(
    model: Any,
    train_source: ImageSource,
    test_source: ImageSource,
    protocol: Protocol,
    *,
    on_epoch: Callable[[int], None] | None = None,
    **reading: Any,
) -> LinearProbeResult:
    """
    Train linear probes of every chosen block and time step together, choose among them, score them on the test set.

    Where there is more than one probe to a seed, a tenth of the training images is held out; it chooses the learning
    rate of each feature set and the best set. The test set chooses nothing. With `settings.max_lr_extensions` the grid
    of rates grows until the chosen ones lie inside it.

    Args:
        model (`PreTrainedModel`): What is probed; see [`~ldae.evaluation.features.extract_features`].
        train_source (`ImageSource`): Training images.
        test_source (`ImageSource`): Test images, scored on their centre crop.
        protocol ([`Protocol`]): How.
        on_epoch (`Callable[[int], None]`, *optional*): Called with the number of epochs done, for progress.
        **reading: Fields of [`~ldae.evaluation.probe_features.Reading`]: `decode_size`, `batch_size`, `num_workers`,
            `device`, `dtype`, and `memory`, the bytes that features may take.

    Returns:
        [`LinearProbeResult`].

    Raises:
        ValueError: where labels are missing, or a block or time step does not exist.
    """
    settings, options = protocol.settings, Reading(**reading)
    found = compute_features(
        model,
        train_source,
        test_source,
        protocol,
        options,
        choosing=lambda num_sets: num_sets * len(settings.lr_multipliers) > 1,
    )
    device = options.device or as_encoder(model).device

    def train(settings: ProbeSettings) -> LinearProbes:
        return train_linear_probes(
            found.fitted,
            found.fitted_labels,
            num_classes=found.num_classes,
            settings=settings,
            device=device,
            on_epoch=on_epoch,
        )

    choosing = len(found.held) > 0
    choice = (found.held, found.held_labels) if choosing else None
    settings, probes, report = search_rates(train, settings, choice, found.test, found.test_labels)
    return LinearProbeResult(
        replace(protocol, settings=settings),
        found.columns,
        probes,
        report,
        len(found.fitted_labels),
        len(found.test_labels),
        HOLDOUT if choosing else 0.0,
    )
