"""A trained encoder beside what it must beat: the same network untrained, its mean latents, raw pixels."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from ldae.data import Batch
from ldae.shared_work import on_main

from .encoder import Layer, as_encoder, baselines_of
from .features import Features, extract_features
from .linear_probe import ProbeSettings
from .metrics import mean_and_stderr
from .probing import check_probe, probe_features
from .protocol import HOLDOUT
from .ridge import few_shot_ridge


FEW_SHOT = "few-shot"
# Keys of a probe's description that tell the compared probes apart.
REPORTED = {
    "ridge": ("penalty",),
    "logistic": ("penalty", "optimizer", "tolerance", "max_iterations", "converged", "iterations", "standardised"),
    "adam": ("epochs", "learning_rate", "learning_rate_at_edge", "batch_norm"),
}


@dataclass(frozen=True)
class Compared:
    """Accuracy of one encoder, its standard error over seeds or draws, the seeds, and how it was measured."""

    name: str
    accuracy: float
    stderr: float | None
    seeds: Any
    protocol: dict[str, Any]
    noisy: bool = False  # its inputs were corrupted


def compare_baselines(
    model: Any,
    train: list[Batch],
    test: list[Batch],
    probe: str = "logistic",
    *,
    settings: ProbeSettings | None = None,
    shots: int = 5,
    draws: int = 20,
    layer: Layer | None = None,
    timestep: int | None = None,
    noisy: bool = False,
    dtype: torch.dtype | None = None,
) -> list[Compared]:
    """Probe an encoder and its baselines in the same way, on features of centre crops that are computed once.

    Args:
        model ([`~ldae.evaluation.encoder.Encoder`] or `PreTrainedModel`): The trained encoder.
        train (`list[Batch]`): uint8 training images with labels.
        test (`list[Batch]`): uint8 test images with labels.
        probe (`str`, defaults to `"logistic"`): `"logistic"`, `"ridge"` or `"adam"`, as in
            [`~ldae.evaluation.probing.run_probe`]: the same tenth of `train` is held out and chooses each encoder's
            penalty or learning rate. `"few-shot"` fits ridge probes to a few labels, the same for all encoders.
        settings ([`~ldae.evaluation.linear_probe.ProbeSettings`], *optional*): How Adam's probes train.
        shots (`int`, defaults to 5): Labels of each class, for `"few-shot"`.
        draws (`int`, defaults to 20): How often they are drawn.
        layer (`int` or `str`, *optional*): Layer of the encoder and of its untrained twin; by default its own.
        timestep (`int`, *optional*): Time step of both; by default the encoder's own.
        noisy (`bool`, defaults to `False`): Whether the inputs of both are corrupted; those of the others are clean.
        dtype (`torch.dtype`, *optional*): Autocast dtype for the features; by default no autocast.

    Returns:
        `list[Compared]`: the trained encoder first.

    Raises:
        ValueError: If the probe is unknown.
    """
    if probe != FEW_SHOT:
        check_probe(probe)
    encoder = as_encoder(model)
    choice: dict[str, Any] = {
        "layers": None if layer is None else [layer],
        "timesteps": None if timestep is None else [timestep],
        "noisy": noisy,
    }
    options: dict[str, Any] = {"shots": shots, "draws": draws} if probe == FEW_SHOT else {"settings": settings}
    compared = []
    for name, each in [("trained encoder", encoder), *((other.name, other) for other in baselines_of(encoder))]:
        place = choice if each.has_choices else {}
        fitted, scored = (extract_features(each, batches, dtype=dtype, **place) for batches in (train, test))
        found = on_main(partial(_score, name, probe, fitted, scored, **options))
        compared.append(found and replace(found, noisy=noisy and each.has_choices))
    return compared


def _score(name: str, probe: str, fitted: Features, scored: Features, **options: Any) -> Compared:
    """Probe one encoder's features."""
    if probe == FEW_SHOT:
        data = (fitted.flat[:, 0], fitted.classes, scored.flat[:, 0], scored.classes)
        value, stderr = mean_and_stderr(few_shot_ridge(*data, **options))
        protocol = {"name": "ridge", "labels_per_class": options["shots"], "draws": options["draws"]}
        return Compared(name, value, stderr, 0, {**protocol, "penalty": "leave-one-out"})
    probes = probe_features(probe, fitted, scored, names=[name], **options)
    value, stderr = probes.score(0)
    details = probes.describe(0)
    protocol = {"name": probes.name, **{key: details[key] for key in REPORTED[probe]}}
    return Compared(name, value, stderr, probes.seeds, {**protocol, "augmentation": [], "holdout": HOLDOUT})
