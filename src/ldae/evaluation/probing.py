"""Run probes of an encoder: on two image sources by a protocol, or on features that are there already."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ldae.data import ImageSource
from ldae.results import Result
from ldae.shared_work import led_by_main, on_main

from .encoder import Layer, as_encoder
from .features import Features, StoredFeatures
from .grid_probes import GridProbes, Part
from .linear_probe import LinearProbes, ProbeReport, ProbeSettings, score_probes, train_linear_probes
from .logistic import fit_logistic_grid
from .metrics import mean_and_stderr
from .protocol import HOLDOUT, SPLIT_SEED, Protocol, compute_features, split_holdout
from .ridge import fit_ridge_grid


PROBES = ("logistic", "adam", "ridge")
EXTENSION = 10.0  # factor between the edge of the grid of rates and the rate that is added beyond it


@dataclass(frozen=True)
class AdamProbes:
    """Linear probes that Adam trained on `num_train` images; held-out images chose each feature set's learning rate.

    `settings` have all rates that were tried, `report` the accuracies and the chosen rates.
    """

    name = "linear"

    settings: ProbeSettings
    probes: LinearProbes
    report: ProbeReport
    num_train: int

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds over which accuracies are means."""
        return self.settings.seeds

    @property
    def best(self) -> int:
        """Index of the feature set that held-out images chose."""
        return self.report.feature_index

    def seed_scores(self, index: int) -> list[float]:
        """Return each seed's test accuracy on a feature set."""
        return self.report.test_accuracy[:, index, self.report.lr_index[index]].tolist()

    def score(self, index: int) -> tuple[float, float | None]:
        """Return mean and standard error of [`~AdamProbes.seed_scores`]."""
        return mean_and_stderr(self.seed_scores(index))

    def held_out_score(self, index: int) -> float | None:
        """Return the mean over seeds of the held-out accuracy; `None` if nothing was held out."""
        if self.report.choice_accuracy is None:
            return None
        return float(self.report.choice_accuracy[:, index, self.report.lr_index[index]].mean())

    def tie_break(self, index: int) -> float:
        """Return 0: of feature sets with equal held-out accuracy the first is chosen."""
        return 0.0

    def folded(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the first seed's probe as a linear layer, `(weight (K, C), bias (K,))`."""
        return self.probes.folded(0, index, self.report.lr_index[index])

    def describe(self, index: int) -> dict[str, Any]:
        """Describe how the probe of a feature set was trained."""
        settings, rate, n = self.settings, self.report.lr_index[index], self.num_train
        return {
            "batch_norm": "without affine" if settings.batch_norm else "none",
            "optimizer": "Adam",
            "weight_decay": 0.0,
            "learning_rate": settings.learning_rates(n)[rate],
            "learning_rates_tried": settings.learning_rates(n),
            "learning_rate_at_edge": settings.is_at_edge(rate),
            "max_lr_extensions": settings.max_lr_extensions,
            "schedule": "cosine",
            "batch_size": settings.batch_size_for(n),
            "epochs": settings.epochs,
        }


Probes = AdamProbes | GridProbes


@dataclass(frozen=True)
class ProbeResult:
    """Probes of every chosen layer and time step.

    Args:
        protocol ([`~ldae.evaluation.protocol.Protocol`]): Which features were probed, of which views of the images.
        columns (`list[tuple]`): (layer, timestep) of the F feature sets.
        probes ([`AdamProbes`] or [`~ldae.evaluation.grid_probes.GridProbes`]): Their probes, with accuracies.
        num_train (`int`): Training images.
        num_test (`int`): Test images.
        holdout (`float`): Share of the training images that chose, 0 if there was nothing to choose.
        pooling (`str`): How the encoder pools its features.
    """

    protocol: Protocol
    columns: list[tuple[Layer | None, int | None]]
    probes: Probes
    num_train: int
    num_test: int
    holdout: float
    pooling: str

    @property
    def best(self) -> int:
        """Index of the feature set that held-out images chose."""
        return self.probes.best

    def describe(self, index: int) -> dict[str, Any]:
        """Describe the protocol of one feature set's score in full."""
        described = {
            "name": self.probes.name,
            **self.protocol.describe_features(*self.columns[index], self.pooling),
            **self.probes.describe(index),
            "augmentation": self.protocol.augmentation,
            "train_images": self.num_train,
            "holdout": self.holdout,
        }
        return described | (self.protocol.describe_crops() if isinstance(self.probes, AdamProbes) else {})

    def result(self, index: int, protocol: dict[str, Any] | None = None, **about: Any) -> Result:
        """Make the result of one feature set.

        Args:
            index (`int`): Which one.
            protocol (`dict`, *optional*): Keys to add to the protocol.
            **about: `dataset`, `split`, `checkpoint` and `details` of the result.
        """
        value, stderr = self.probes.score(index)
        described = {**self.describe(index), **(protocol or {})}
        fields: dict[str, Any] = {"seeds": self.probes.seeds, "stderr": stderr, "n": self.num_test, **about}
        return Result("accuracy", value, protocol=described, **fields)


def run_probe(
    model: Any,
    train_source: ImageSource | StoredFeatures,
    test_source: ImageSource | StoredFeatures,
    protocol: Protocol,
    probe: str = "adam",
    *,
    on_epoch: Callable[[int], None] | None = None,
    **reading: Any,
) -> ProbeResult:
    """Probe every chosen layer and time step together, choose among them, and score them on the test set.

    A tenth of the training images is held out; it chooses the learning rate or the penalty of each feature set and the
    best set. (Adam's probes keep it if there is nothing to choose.) The test set chooses nothing.

    Args:
        model ([`~ldae.evaluation.encoder.Encoder`] or `PreTrainedModel`): What is probed.
        train_source (`ImageSource` or `StoredFeatures`): Training images with labels, or features that were computed
            before, for the protocol "cached" without flips.
        test_source (`ImageSource` or `StoredFeatures`): Test images with labels, scored on their centre crop.
        protocol ([`~ldae.evaluation.protocol.Protocol`]): Which features, of which views of the images.
        probe (`str`, defaults to `"adam"`): `"adam"` trains as `protocol.settings` say, as in the papers; `"logistic"`
            is solved until it has converged; `"ridge"` has a closed form. The last two need the protocol "cached", and
            mirror images count as images of their own.
        on_epoch (`Callable[[int], None]`, *optional*): Called with the number of Adam's epochs done, for progress.
        **reading: How images are read and features kept, as of [`~ldae.evaluation.protocol.compute_features`]:
            `decode_size`, `batch_size`, `num_workers`, `device`, `dtype` and `memory`.

    Returns:
        [`ProbeResult`]. Within [`~ldae.shared_work.sharing_work`] only the main process gets it.

    Raises:
        ValueError: If labels are missing, a layer or time step does not exist, or the probe does not suit the
            protocol.
    """
    check_probe(probe)
    encoder = as_encoder(model)
    settings = protocol.settings
    if probe != "adam" and protocol.name != "cached":
        raise ValueError(f"protocol={protocol.name!r} must be cached with {probe} probes, which have no epochs.")
    layers, timesteps = encoder.choices(protocol.layers, protocol.timesteps, protocol.noisy)
    hold_out = probe != "adam" or len(layers) * len(timesteps) * len(settings.lr_multipliers) > 1
    found = compute_features(encoder, train_source, test_source, protocol, hold_out=hold_out, **reading)
    about = (len(found.test[1]), HOLDOUT if hold_out else 0.0, encoder.pooling)
    if probe != "adam":
        names = [f"layer {layer}, t = {timestep}" for layer, timestep in found.columns]
        parts, num_train = (found.fitted, found.held, found.test), len(found.epoch_labels) + len(found.held[1])

        def solve() -> ProbeResult:
            grid = fit_probes(probe, *parts, num_classes=found.num_classes, names=names)
            return ProbeResult(protocol, found.columns, grid, num_train, *about)

        return on_main(solve)

    def train(epoch_features: Callable[[int], Any]) -> ProbeResult:
        adam = train_adam_probes(
            epoch_features,
            found.epoch_labels,
            found.held if hold_out else None,
            found.test,
            num_classes=found.num_classes,
            settings=settings,
            device=reading.get("device") or encoder.device,
            on_epoch=on_epoch,
        )
        return ProbeResult(replace(protocol, settings=adam.settings), found.columns, adam, adam.num_train, *about)

    return led_by_main(train, found.epoch)


def fit_probes(
    probe: str,
    fitted: Part,
    held: Part,
    test: Part,
    *,
    num_classes: int,
    settings: ProbeSettings | None = None,
    names: Sequence[str] | None = None,
    device: torch.device | str = "cpu",
) -> Any:
    """Fit probes of many feature sets to features that are there already.

    Args:
        probe (`str`): `"adam"`, `"logistic"` or `"ridge"`, as of [`run_probe`].
        fitted (`tuple`): Features `(n, F, C)` and classes `(n,)` of the images that are fitted.
        held (`tuple`): Those of the images that choose.
        test (`tuple`): Those of the images that score.
        num_classes (`int`): K.
        settings ([`~ldae.evaluation.linear_probe.ProbeSettings`], *optional*): How Adam's probes train.
        names (`Sequence[str]`, *optional*): Names of the feature sets, for messages.
        device (`torch.device` or `str`, defaults to `"cpu"`): Where Adam's probes train.

    Returns:
        [`AdamProbes`] or [`~ldae.evaluation.grid_probes.GridProbes`].
    """
    check_probe(probe)
    if probe == "ridge":
        return fit_ridge_grid(fitted, held, test, num_classes=num_classes)
    if probe == "logistic":
        return fit_logistic_grid(fitted, held, test, num_classes=num_classes, names=names)
    features, labels = fitted
    options: dict[str, Any] = {"num_classes": num_classes, "settings": settings or ProbeSettings(), "device": device}
    return train_adam_probes(lambda epoch: features, labels, held, test, **options)


def probe_features(probe: str, train: Features, test: Features, *, seed: int = SPLIT_SEED, **options: Any) -> Any:
    """Fit probes to extracted features, with a tenth of the training images held out.

    Args:
        probe (`str`): `"adam"`, `"logistic"` or `"ridge"`, as of [`run_probe`].
        train ([`~ldae.evaluation.features.Features`]): Of the training images, with labels.
        test ([`~ldae.evaluation.features.Features`]): Of the test images, with labels.
        seed (`int`, defaults to 0): Seed of the split.
        **options: `settings` and `device` of Adam's probes.

    Returns:
        [`AdamProbes`] or [`~ldae.evaluation.grid_probes.GridProbes`].
    """
    labels, truth = train.classes, test.classes
    kept, held = split_holdout(len(labels), seed)
    x = train.flat
    parts = ((x[kept], labels[kept]), (x[held], labels[held]), (test.flat, truth))
    num_classes = int(torch.maximum(labels.max(), truth.max())) + 1
    return fit_probes(probe, *parts, num_classes=num_classes, **options)


def train_adam_probes(
    epoch_features: Callable[[int], Any],
    labels: torch.Tensor,
    held: Part | None,
    test: Part,
    *,
    settings: ProbeSettings,
    **options: Any,
) -> AdamProbes:
    """Train Adam's probes at every learning rate, and at further ones while held-out examples choose one at the edge.

    A grid of one rate is taken as given. Otherwise a rate a factor of 10 beyond the edge is added, at most
    `settings.max_lr_extensions` times at either end; only the probes of the added rate are trained, since no probe
    affects another. The result's settings have all rates tried, in rising order where some were added; a warning says
    so where a chosen rate is still at the edge.

    `held` and `test` are features and classes of the examples that choose and that score; the other arguments are
    those of [`~ldae.evaluation.linear_probe.train_linear_probes`].
    """
    probes = train_linear_probes(epoch_features, labels, settings=settings, **options)
    report = score_probes(probes, held, *test)
    extends = held is not None and len(settings.lr_multipliers) > 1 and settings.max_lr_extensions > 0
    left: dict[Any, int] = dict.fromkeys((max, min), settings.max_lr_extensions)  # at the upper and the lower end
    while extends:
        rates = settings.lr_multipliers
        chosen = {rates[index] for index in report.lr_index}
        ends = [end for end in left if end(rates) in chosen and left[end]]
        if not ends:
            break
        for end in ends:
            left[end] -= 1
        added = tuple(end(rates) * EXTENSION if end is max else end(rates) / EXTENSION for end in ends)
        more = train_linear_probes(epoch_features, labels, settings=replace(settings, lr_multipliers=added), **options)
        every = (*rates, *added)
        order = sorted(range(len(every)), key=lambda i: every[i])
        settings = replace(settings, lr_multipliers=tuple(every[i] for i in order))
        probes = replace(
            probes,
            weight=torch.cat([probes.weight, more.weight], dim=2)[:, :, order],
            bias=torch.cat([probes.bias, more.bias], dim=2)[:, :, order],
        )
        report = score_probes(probes, held, *test)
    at_edge = sum(settings.is_at_edge(rate) for rate in report.lr_index)
    if extends and at_edge:
        warnings.warn(
            f"the learning rate of {at_edge} of {len(report.lr_index)} feature sets is at the edge of its grid, "
            f"lr_multipliers={settings.lr_multipliers}, which was extended "
            f"max_lr_extensions={settings.max_lr_extensions} times: these probes have not "
            "converged. Use the logistic probe, or more epochs.",
            stacklevel=2,
        )
    return AdamProbes(settings, probes, report, len(labels))


def check_probe(probe: str) -> None:
    """Check the name of a probe.

    Raises:
        ValueError: If it is unknown.
    """
    if probe not in PROBES:
        raise ValueError(f"probe={probe!r} must be one of {', '.join(PROBES)}.")
