"""Linear probing of a model on a data set, from images to accuracies, by one of two named protocols."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from ldae.data import ImageSource

from .features import Layer, pooling_of
from .linear_probe import LinearProbes, ProbeReport, ProbeSettings, score_probes, train_linear_probes
from .metrics import mean_and_stderr
from .probe_features import HOLDOUT, Reading, compute_features
from .ridge import RIDGE_PENALTIES
from .ridge_grid import RidgeProbes, fit_ridge_grid


PROTOCOLS = ("paper", "cached")
CROPS = ("resized", "padded")


@dataclass(frozen=True)
class Protocol:
    """
    How a model is probed: by default as l-DAE's paper does (App. A).

    Args:
        name (`str`, defaults to `"paper"`): `"paper"`: features are computed anew in each epoch, from images under
            random crop and flip. `"cached"`: they are computed once, of the centre crop and its mirror image, of
            which each epoch takes one at random; it costs one or two passes over the images instead of one an epoch.
        layers (`tuple`, *optional*): Blocks, counted from 1, or a DDAE's taps by name; by default the model's own choice.
        timesteps (`tuple[int, ...]`, *optional*): Time steps; by default the model's own choice.
        noisy (`bool`, defaults to `False`): Whether inputs are corrupted at t, in training and in the test.
        crop (`str`, defaults to `"resized"`): `"resized"`: random resized crops, as in MAE's probe, which l-DAE's paper
            refers to. `"padded"`: crops of the image with a black edge, as DDAE's paper has it.
        crop_scale (`tuple[float, float]`, defaults to `(0.08, 1.0)`): Share of the area that random resized crops keep.
        crop_padding (`int`, defaults to 4, in pixels): Width of that edge.
        horizontal_flip (`bool`, defaults to `True`): Whether images are mirrored; not for digits or letters.
        settings ([`ProbeSettings`]): How the probes train.
    """

    name: str = "paper"
    layers: tuple[Layer, ...] | None = None
    timesteps: tuple[int, ...] | None = None
    noisy: bool = False
    crop: str = "resized"
    crop_scale: tuple[float, float] = (0.08, 1.0)
    crop_padding: int = 4
    horizontal_flip: bool = True
    settings: ProbeSettings = field(default_factory=ProbeSettings)

    def __post_init__(self) -> None:
        if self.name not in PROTOCOLS:
            raise ValueError(f"protocol={self.name!r} is unknown; choose one of {', '.join(PROTOCOLS)}.")
        if self.crop not in CROPS:
            raise ValueError(f"crop={self.crop!r} is unknown; choose one of {', '.join(CROPS)}.")
        if self.crop_padding < 1:
            raise ValueError(f"crop_padding={self.crop_padding} is not possible; give 1 pixel or more.")
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError(
                f"crop_scale={self.crop_scale} is not possible; give two numbers with 0 < low <= high <= 1."
            )


@dataclass(frozen=True)
class LinearProbeResult:
    """
    What [`run_linear_probe`] found.

    `columns` are the (layer, timestep) of the F feature sets; `report` has every probe's accuracy and the choice;
    `num_train`, `num_test` count images; `holdout` is the share that chose, 0 where there was nothing to choose.
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

    def folded(self, feature_index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The first seed's probe of a feature set, at that rate, as a linear layer: `(weight (K, C), bias (K,))`."""
        return self.probes.folded(0, feature_index, self.report.lr_index[feature_index])

    def describe(self, feature_index: int) -> dict[str, Any]:
        """The protocol of one feature set's score in full, as results.json keeps it."""
        layer, timestep = self.columns[feature_index]
        settings, rate = self.protocol.settings, self.report.lr_index[feature_index]
        resized = self.protocol.crop == "resized"
        augmentation = []
        if self.protocol.name == "paper":
            augmentation = ["random_resized_crop" if resized else "random_crop"]
        augmentation += ["horizontal_flip"] if self.protocol.horizontal_flip else []
        return {
            "name": "linear",
            "preset": self.protocol.name,
            "layer": layer,
            "timestep": timestep,
            "input": "noisy" if self.protocol.noisy else "clean",
            "pooling": pooling_of(layer),
            "batch_norm": "without affine" if settings.batch_norm else "none",
            "optimizer": "Adam",
            "weight_decay": 0.0,
            "learning_rate": settings.learning_rates(self.num_train)[rate],
            "learning_rates_tried": settings.learning_rates(self.num_train),
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
    model: PreTrainedModel,
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
    rate of each feature set and the best set. The test set chooses nothing.

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
    probes = train_linear_probes(
        found.fitted,
        found.fitted_labels,
        num_classes=found.num_classes,
        settings=settings,
        device=options.device or next(model.parameters()).device,
        on_epoch=on_epoch,
    )
    choosing = len(found.held) > 0
    choice = (found.held, found.held_labels) if choosing else None
    report = score_probes(probes, choice, found.test, found.test_labels)
    return LinearProbeResult(
        protocol,
        found.columns,
        probes,
        report,
        len(found.fitted_labels),
        len(found.test_labels),
        HOLDOUT if choosing else 0.0,
    )


@dataclass(frozen=True)
class RidgeGridResult:
    """
    What [`run_ridge_grid`] found: `columns` are the (layer, timestep) of the F feature sets, `probes` their probes with
    their accuracies; `num_train` counts the training images, those that chose among them, `num_test` the test images.
    """

    protocol: Protocol
    columns: list[tuple[Layer | None, int | None]]
    probes: RidgeProbes
    num_train: int
    num_test: int

    def score(self, feature_index: int) -> tuple[float, float | None]:
        """Test accuracy of a feature set; there is nothing random in it, hence no standard error."""
        return float(self.probes.test[feature_index]), None

    def held_out(self, feature_index: int) -> float:
        """The held-out accuracy at the chosen penalty, of the probe that had not seen the held-out images."""
        return float(self.probes.held_out[feature_index])

    def folded(self, feature_index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A feature set's probe as a linear layer: `(weight (K, C), bias (K,))`."""
        return self.probes.folded(feature_index)

    def describe(self, feature_index: int) -> dict[str, Any]:
        """The protocol of one feature set's score in full, as results.json keeps it."""
        layer, timestep = self.columns[feature_index]
        return {
            "name": "ridge",
            "preset": self.protocol.name,
            "layer": layer,
            "timestep": timestep,
            "input": "noisy" if self.protocol.noisy else "clean",
            "pooling": pooling_of(layer),
            "penalty": float(self.probes.penalty[feature_index]),
            "penalties_tried": list(RIDGE_PENALTIES),
            "augmentation": ["horizontal_flip"] if self.protocol.horizontal_flip else [],
            "train_images": self.num_train,
            "holdout": HOLDOUT,
        }


def run_ridge_grid(
    model: PreTrainedModel,
    train_source: ImageSource,
    test_source: ImageSource,
    protocol: Protocol,
    **reading: Any,
) -> RidgeGridResult:
    """
    Fit a ridge probe of every chosen block and time step in closed form, of features computed once.

    A tenth of the training images, the same as in [`run_linear_probe`], chooses the penalty of each; the probe is then
    fitted to them too. With `protocol.horizontal_flip` mirror images of the others count as images of their own.

    Args:
        model, train_source, test_source, **reading: As of [`run_linear_probe`].
        protocol ([`Protocol`]): Of name "cached"; its `settings` mean nothing here.

    Returns:
        [`RidgeGridResult`].

    Raises:
        ValueError: for another protocol, where labels are missing, or a block or time step does not exist.
    """
    if protocol.name != "cached":
        raise ValueError(
            f"protocol={protocol.name!r} is not possible with ridge probes, which have no epochs; use cached."
        )
    found = compute_features(
        model, train_source, test_source, protocol, Reading(**reading), choosing=lambda num_sets: True
    )
    probes = fit_ridge_grid(
        (found.every_view, found.every_label),
        (found.held, found.held_labels),
        (found.test, found.test_labels),
        num_classes=found.num_classes,
    )
    num_train = len(found.fitted_labels) + len(found.held_labels)
    return RidgeGridResult(protocol, found.columns, probes, num_train, len(found.test_labels))
