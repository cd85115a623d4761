"""Ridge probes of many feature sets at once, from their second moments: one pass over the features and no training."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from .feature_store import Rows, pieces_of
from .ridge import EPS, RIDGE_PENALTIES


MOMENTS_BYTES = 256 * 2**20  # of second moments that are held at once: so many feature sets are worked on together


@dataclass(frozen=True)
class RidgeProbes:
    """
    A ridge probe of each of F feature sets: its linear layer of raw features, `weight` `(F, C, K)` and `bias` `(F, K)` in
    float64, the penalty chosen for it and the held-out accuracy that chose it, and its test accuracy, all `(F,)`.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    penalty: torch.Tensor
    held_out: torch.Tensor
    test: torch.Tensor

    def folded(self, feature_index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """One probe as `torch.nn.Linear` holds it: `(weight (K, C), bias (K,))` in float32."""
        return self.weight[feature_index].T.float().contiguous(), self.bias[feature_index].float()


def fit_ridge_grid(
    fitted: tuple[torch.Tensor | Rows, torch.Tensor],
    held: tuple[torch.Tensor | Rows, torch.Tensor],
    test: tuple[torch.Tensor | Rows, torch.Tensor],
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
        ValueError: where a part is empty, or a penalty is not positive.

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [0.2, 0.9], [1.0, 0.1], [0.9, 0.0]])[:, None]  # (n, F, C)
        >>> data = (x, torch.tensor([0, 0, 1, 1]))
        >>> fit_ridge_grid(data, data, data, num_classes=2).test
        tensor([1.], dtype=torch.float64)
    """
    if not penalties or min(penalties) <= 0:
        raise ValueError(f"penalties={tuple(penalties)} is not possible; give positive ones.")
    for name, (features, labels) in (("fitted", fitted), ("held", held), ("test", test)):
        if len(labels) == 0 or len(features) != len(labels):
            raise ValueError(
                f"{name} has {len(features)} features and {len(labels)} classes; give as many, at least 1."
            )
    _, num_sets, c = fitted[0].shape
    together = max(1, MOMENTS_BYTES // (8 * c * c))
    parts = []
    for begin in range(0, num_sets, together):
        sets = slice(begin, begin + together)
        parts.append(_fit_sets(sets, fitted, held, test, num_classes, sorted(penalties)))
    return RidgeProbes(*(torch.cat(fields) for fields in zip(*parts, strict=True)))


class _Moments:
    """Sums over n examples of F feature sets: of x `(F, C)`, x x^T `(F, C, C)`, x y^T `(F, C, K)` and y `(K,)`."""

    def __init__(self, num_sets: int, c: int, num_classes: int) -> None:
        zeros = torch.zeros(num_sets, c, 1 + c + num_classes, dtype=torch.float64)
        self.x, self.xx, self.xy = zeros[..., 0], zeros[..., 1 : 1 + c], zeros[..., 1 + c :]
        self.y, self.n = torch.zeros(num_classes, dtype=torch.float64), 0
        self.origin: torch.Tensor | None = None  # subtracted first: a large mean would cost digits

    def add(self, sets: slice, features: torch.Tensor | Rows, labels: torch.Tensor) -> None:
        begin = 0
        for piece in pieces_of(features, copies=8):
            x = piece[:, sets].cpu().double().transpose(0, 1)  # (F, b, C)
            if self.origin is None:
                self.origin = x.mean(dim=1, keepdim=True)  # (F, 1, C)
            x = x - self.origin
            y = F.one_hot(labels[begin : begin + x.shape[1]], len(self.y)).double()  # (b, K)
            begin += x.shape[1]
            self.x += x.sum(dim=1)
            self.xx += x.mT @ x
            self.xy += x.mT @ y
            self.y += y.sum(dim=0)
            self.n += x.shape[1]

    def solve(self, penalties: Sequence[float]) -> tuple[torch.Tensor, torch.Tensor]:
        """Probes of raw features for each of P penalties: weights `(P, F, C, K)`, biases `(P, F, K)`."""
        mean, target = self.x / self.n, self.y / self.n  # (F, C), (K,)
        covariance = self.xx / self.n - mean[:, :, None] * mean[:, None, :]
        std = (covariance.diagonal(dim1=1, dim2=2).clamp(min=0) + EPS).sqrt()  # (F, C)
        correlation = covariance / (std[:, :, None] * std[:, None, :])
        cross = (self.xy / self.n - mean[:, :, None] * target) / std[..., None]  # (F, C, K)
        values, vectors = torch.linalg.eigh(correlation)  # (F, C), (F, C, C)
        projected = vectors.mT @ cross
        shrunk = torch.stack([projected / (values.clamp(min=0) + penalty)[..., None] for penalty in penalties])
        weight = (vectors @ shrunk) / std[..., None]  # (P, F, C, K)
        assert self.origin is not None
        centre = mean + self.origin[:, 0]  # (F, C)
        return weight, target - (centre[:, None] @ weight)[:, :, 0]


def _fit_sets(
    sets: slice,
    fitted: tuple[torch.Tensor | Rows, torch.Tensor],
    held: tuple[torch.Tensor | Rows, torch.Tensor],
    test: tuple[torch.Tensor | Rows, torch.Tensor],
    num_classes: int,
    penalties: list[float],
) -> tuple[torch.Tensor, ...]:
    """The fields of [`RidgeProbes`] for some of the feature sets."""
    count, c = len(range(*sets.indices(fitted[0].shape[1]))), fitted[0].shape[2]
    moments = _Moments(count, c, num_classes)
    moments.add(sets, *fitted)
    accuracies = _accuracies(sets, *held, *moments.solve(penalties))  # (P, F)
    # The last of the best: penalties rise.
    best = len(penalties) - 1 - accuracies.flip(0).argmax(dim=0)  # (F,)
    moments.add(sets, *held)
    weights, biases = moments.solve(penalties)
    index = torch.arange(count)
    weight, bias = weights[best, index], biases[best, index]  # (F, C, K), (F, K)
    scores = _accuracies(sets, *test, weight[None], bias[None])[0]
    return weight, bias, torch.tensor(penalties, dtype=torch.float64)[best], accuracies[best, index], scores


def _accuracies(
    sets: slice, features: torch.Tensor | Rows, labels: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """Accuracies `(P, F)` of probes `(P, F, C, K)`, `(P, F, K)`."""
    hits, begin = torch.zeros(weight.shape[:2], dtype=torch.float64), 0
    for piece in pieces_of(features, copies=8):
        x = piece[:, sets].cpu().double().transpose(0, 1)  # (F, b, C)
        truth = labels[begin : begin + x.shape[1]]
        begin += x.shape[1]
        for p in range(len(weight)):
            predictions = torch.baddbmm(bias[p][:, None], x, weight[p]).argmax(dim=-1)  # (F, b)
            hits[p] += (predictions == truth).sum(dim=1)
    return hits / len(labels)
