"""Criteria that choose a block and a time step without labels: effective rank, alignment and uniformity."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

from ldae.data import Batch
from ldae.shared_work import on_main

from .alignment import alignment, uniformity
from .encoder import Layer
from .features import Features, extract_features


MOST_IMAGES = 5000  # by then RankMe has settled; uniformity compares all pairs


def rankme(features: torch.Tensor, eps: float = 1e-7) -> float:
    """Compute RankMe, the effective rank of features (Garrido et al. 2023, eq. 1).

    It is exp(-sum p log p), with p the singular values of the matrix of features, not centred, divided by their sum.

    Args:
        features (`torch.Tensor` of shape `(n, C)`): One row an image.
        eps (`float`, defaults to 1e-7): Added to each p, as in the paper.

    Returns:
        `float`, from 1 (all features on a line) to min(n, C) (no direction preferred).

    Raises:
        ValueError: If the features are not `(n, C)` with n > 0, or not finite.

    Example:
        >>> round(rankme(torch.eye(8)), 2), round(rankme(torch.ones(8, 4)), 2)
        (8.0, 1.0)
    """
    if features.ndim != 2 or not len(features):
        raise ValueError(f"features must be (n, C) with n of 1 or more; got {tuple(features.shape)}.")
    x = features.double()
    if not x.isfinite().all():
        raise ValueError("features must be finite; these hold NaN or infinity, as a broken checkpoint gives.")
    # Singular values from the eigenvalues of the smaller Gram matrix.
    gram = x.T @ x if x.shape[0] >= x.shape[1] else x @ x.T
    values = torch.linalg.eigvalsh(gram).clamp(min=0)
    values = torch.where(values > values.max() * 1e-13, values, 0).sqrt()  # below that is rounding
    p = values / values.sum().clamp(min=1e-300) + eps  # features that are all zero have rank 1, too
    return float(torch.exp(-(p * p.log()).sum()))


@dataclass(frozen=True)
class Criterion:
    """A criterion; a higher value is better.

    Args:
        score (`Callable`): Computes the value from features `(n, C)` of two views of the same images.
        views (`int`): Number of views that it needs, 1 or 2.
        metric (`str`): Name of the value in results.
        meaning (`str`): What the value is, in words.
    """

    score: Callable[[torch.Tensor, torch.Tensor], float]
    views: int
    metric: str
    meaning: str


CRITERIA = {
    "rankme": Criterion(lambda x, y: rankme(x), 1, "rankme", "effective rank of the features"),
    "alignment": Criterion(
        lambda x, y: -alignment(x, y), 2, "neg_alignment", "minus the distance of two noisings of an image"
    ),
    "uniformity": Criterion(
        lambda x, y: -uniformity(x), 1, "neg_uniformity", "minus the uniformity of the features on the sphere"
    ),
    "alignment_uniformity": Criterion(
        lambda x, y: -alignment(x, y) - uniformity(x),
        2,
        "neg_alignment_uniformity",
        "minus the sum of alignment and uniformity",
    ),
}


def score_cells(
    model: Any,
    batches: Sequence[Batch],
    criteria: Iterable[str],
    *,
    layers: Sequence[Layer],
    timesteps: Sequence[int],
    **extraction: Any,
) -> dict[str, torch.Tensor]:
    """Score every block and time step by criteria that need no labels.

    Args:
        model (`PreTrainedModel`): An l-DAE or a DDAE.
        batches (`Sequence[Batch]`): uint8 images; labels are not used. More than `MOST_IMAGES` change little.
        criteria (`Iterable[str]`): Keys of `CRITERIA`.
        layers (`Sequence`): Layers to score.
        timesteps (`Sequence[int]`): Time steps to score.
        **extraction: `device` and `dtype` of [`~ldae.evaluation.features.extract_features`].

    Returns:
        `dict` from a criterion to scores `(L, T)` in float64; higher is better.

    Raises:
        ValueError: For an unknown criterion, or features that are not finite.
    """
    names = list(criteria)
    for name in names:
        if name not in CRITERIA:
            raise ValueError(f"criterion={name!r} is unknown; choose one of {', '.join(CRITERIA)}.")

    def features(**noise: Any) -> Features:
        return extract_features(model, batches, layers=layers, timesteps=timesteps, **noise, **extraction)

    clean = features()
    views = [features(noisy=True, seed=seed) for seed in (0, 1)] if any(CRITERIA[n].views == 2 for n in names) else []

    def score() -> dict[str, torch.Tensor]:
        scores = {name: torch.empty(len(layers), len(timesteps), dtype=torch.float64) for name in names}
        for row, column, name in product(range(len(layers)), range(len(timesteps)), names):
            used = views if CRITERIA[name].views == 2 else [clean, clean]
            x, y = (view.values[:, row, column] for view in used)  # (n, C)
            scores[name][row, column] = CRITERIA[name].score(x, y)
        return scores

    return on_main(score)
