"""Ridge probes of many feature sets at once, from their second moments: one pass over the features and no training."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .grid_probes import MOMENTS_BYTES, GridProbes, Moments, Part, check_parts, choose_largest, grid_accuracies
from .ridge import RIDGE_PENALTIES


@dataclass(frozen=True)
class RidgeProbes(GridProbes):
    """Ridge probes of F feature sets; see [`~ldae.evaluation.grid_probes.GridProbes`]."""


def fit_ridge_grid(
    fitted: Part,
    held: Part,
    test: Part,
    *,
    num_classes: int,
    penalties: Sequence[float] = RIDGE_PENALTIES,
) -> RidgeProbes:
    """
    Fit the ridge probe of [`~ldae.evaluation.ridge.fit_ridge`] to every feature set.

    The penalty of each set is the one that does best on the held-out examples, of equally good ones the largest; the probe
    is then fitted to them too. What is fitted are second moments, float64 sums over examples: features are read in pieces
    and never all held.

    Args:
        fitted (`tuple`): Features `(n, F, C)`, a tensor or rows of a store, and classes `(n,)`.
        held (`tuple`): Those of the held-out examples.
        test (`tuple`): Those of the test set, which chooses nothing.
        num_classes (`int`): K.
        penalties (`Sequence[float]`, defaults to `RIDGE_PENALTIES`): The grid.

    Returns:
        [`RidgeProbes`].

    Raises:
        ValueError: If a part is empty, or a penalty is not positive.

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [0.2, 0.9], [1.0, 0.1], [0.9, 0.0]])[:, None]  # (n, F, C)
        >>> data = (x, torch.tensor([0, 0, 1, 1]))
        >>> fit_ridge_grid(data, data, data, num_classes=2).test
        tensor([1.], dtype=torch.float64)
    """
    check_parts(penalties, fitted=fitted, held=held, test=test)
    _, num_sets, c = fitted[0].shape
    together = max(1, MOMENTS_BYTES // (8 * c * c))
    parts = []
    for begin in range(0, num_sets, together):
        sets = slice(begin, begin + together)
        parts.append(_fit_sets(sets, fitted, held, test, num_classes, sorted(penalties)))
    return RidgeProbes(*(torch.cat(fields) for fields in zip(*parts, strict=True)))


def _solve(moments: Moments, penalties: Sequence[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Solve for the probes of raw features at each of P penalties: weights `(P, F, C, K)`, biases `(P, F, K)`."""
    std, values, vectors = moments.standardise()  # (F, C), (F, C), (F, C, C)
    target = moments.y / moments.n  # (K,)
    cross = (moments.xy / moments.n - (moments.x / moments.n)[:, :, None] * target) / std[..., None]  # (F, C, K)
    projected = vectors.mT @ cross
    shrunk = torch.stack([projected / (values + penalty)[..., None] for penalty in penalties])
    weight = (vectors @ shrunk) / std[..., None]  # (P, F, C, K)
    return weight, target - (moments.mean[:, None] @ weight)[:, :, 0]


def _fit_sets(
    sets: slice,
    fitted: Part,
    held: Part,
    test: Part,
    num_classes: int,
    penalties: list[float],
) -> tuple[torch.Tensor, ...]:
    """Compute the fields of [`RidgeProbes`] for some of the feature sets."""
    count, c = len(range(*sets.indices(fitted[0].shape[1]))), fitted[0].shape[2]
    moments = Moments(count, c, num_classes)
    moments.add(sets, *fitted)
    accuracies = grid_accuracies(sets, *held, *_solve(moments, penalties))  # (P, F)
    best = choose_largest(accuracies)  # (F,)
    moments.add(sets, *held)
    weights, biases = _solve(moments, penalties)
    index = torch.arange(count)
    weight, bias = weights[best, index], biases[best, index]  # (F, C, K), (F, K)
    scores = grid_accuracies(sets, *test, weight[None], bias[None])[0]
    return weight, bias, torch.tensor(penalties, dtype=torch.float64)[best], accuracies[best, index], scores
