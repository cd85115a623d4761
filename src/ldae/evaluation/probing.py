"""Run probes of an encoder: on two image sources by a protocol, or on features that were extracted before."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ldae.data import ImageSource
from ldae.results import Result
from ldae.shared_work import add_up, led_by_main, main_only

from .encoder import Layer, as_encoder
from .features import Features, StoredFeatures
from .grid_probes import GridProbes, Part, Reduce, alone
from .linear_probe import AdamProbes, ProbeSettings, train_adam_probes
from .logistic import fit_logistic_grid
from .protocol import HOLDOUT, SPLIT_SEED, Protocol, compute_features, split_holdout
from .ridge import fit_ridge_grid


PROBES = ("logistic", "adam", "ridge")

Probes = AdamProbes | GridProbes


@dataclass(frozen=True)
class ProbeResult:
    """Probes of every chosen layer and time step.

    Args:
        protocol ([`~ldae.evaluation.protocol.Protocol`]): Which features were probed, from which views of the images.
        columns (`list[tuple]`): (layer, timestep) of the F feature sets.
        probes ([`~ldae.evaluation.linear_probe.AdamProbes`] or [`~ldae.evaluation.grid_probes.GridProbes`]): Their
            probes, with accuracies.
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
        model ([`~ldae.evaluation.encoder.Encoder`] or `PreTrainedModel`): The encoder.
        train_source (`ImageSource` or `StoredFeatures`): Training images with labels, or features that were computed
            before, for the protocol "cached" without flips.
        test_source (`ImageSource` or `StoredFeatures`): Test images with labels, scored on their centre crop.
        protocol ([`~ldae.evaluation.protocol.Protocol`]): Which features, from which views of the images.
        probe (`str`, defaults to `"adam"`): `"adam"` trains with `protocol.settings`, as in the papers; `"logistic"`
            is solved until it has converged; `"ridge"` has a closed form. The last two need the protocol "cached", and
            treat mirror images as images of their own.
        on_epoch (`Callable[[int], None]`, *optional*): Called with the number of Adam's epochs done, for progress.
        **reading: How images are read and features kept: `decode_size`, `batch_size`, `num_workers`, `device`, `dtype`
            and `memory` of [`~ldae.evaluation.protocol.compute_features`].

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
    by_adam = probe == "adam"
    hold_out = not by_adam or len(layers) * len(timesteps) * len(settings.lr_multipliers) > 1
    found = compute_features(
        encoder, train_source, test_source, protocol, hold_out=hold_out, divided=not by_adam, **reading
    )
    about = (found.num_test, HOLDOUT if hold_out else 0.0, encoder.pooling)
    if not by_adam:
        names = [f"layer {layer}, t = {timestep}" for layer, timestep in found.columns]
        parts = (found.fitted, found.held, found.test)
        grid = fit_probes(probe, *parts, num_classes=found.num_classes, names=names, reduce=add_up)
        return main_only(ProbeResult(protocol, found.columns, grid, found.num_train, *about))

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
    reduce: Reduce = alone,
) -> Any:
    """Fit probes of many feature sets to features that were extracted before.

    Args:
        probe (`str`): `"adam"`, `"logistic"` or `"ridge"`, as in [`run_probe`].
        fitted (`tuple`): Features `(n, F, C)` and classes `(n,)` of the images that are fitted.
        held (`tuple`): Those of the images that choose.
        test (`tuple`): Those of the images that score.
        num_classes (`int`): K.
        settings ([`~ldae.evaluation.linear_probe.ProbeSettings`], *optional*): How Adam's probes train.
        names (`Sequence[str]`, *optional*): Names of the feature sets, for messages.
        device (`torch.device` or `str`, defaults to `"cpu"`): Where Adam's probes train.
        reduce (`Callable`, *optional*): As in [`~ldae.evaluation.ridge.fit_ridge_grid`], for the other probes.

    Returns:
        [`~ldae.evaluation.linear_probe.AdamProbes`] or [`~ldae.evaluation.grid_probes.GridProbes`].
    """
    check_probe(probe)
    if probe == "ridge":
        return fit_ridge_grid(fitted, held, test, num_classes=num_classes, reduce=reduce)
    if probe == "logistic":
        return fit_logistic_grid(fitted, held, test, num_classes=num_classes, names=names, reduce=reduce)
    features, labels = fitted
    options: dict[str, Any] = {"num_classes": num_classes, "settings": settings or ProbeSettings(), "device": device}
    return train_adam_probes(lambda epoch: features, labels, held, test, **options)


def probe_features(probe: str, train: Features, test: Features, *, seed: int = SPLIT_SEED, **options: Any) -> Any:
    """Fit probes to extracted features, with a tenth of the training images held out.

    Args:
        probe (`str`): `"adam"`, `"logistic"` or `"ridge"`, as in [`run_probe`].
        train ([`~ldae.evaluation.features.Features`]): Features of the training images, with labels.
        test ([`~ldae.evaluation.features.Features`]): Features of the test images, with labels.
        seed (`int`, defaults to 0): Seed of the split.
        **options: `settings` and `device` of [`fit_probes`].

    Returns:
        [`~ldae.evaluation.linear_probe.AdamProbes`] or [`~ldae.evaluation.grid_probes.GridProbes`].
    """
    labels, truth = train.classes, test.classes
    kept, held = split_holdout(len(labels), seed)
    x = train.flat
    parts = ((x[kept], labels[kept]), (x[held], labels[held]), (test.flat, truth))
    num_classes = int(torch.maximum(labels.max(), truth.max())) + 1
    return fit_probes(probe, *parts, num_classes=num_classes, **options)


def check_probe(probe: str) -> None:
    """Check the name of a probe.

    Raises:
        ValueError: If it is unknown.
    """
    if probe not in PROBES:
        raise ValueError(f"probe={probe!r} must be one of {', '.join(PROBES)}.")
