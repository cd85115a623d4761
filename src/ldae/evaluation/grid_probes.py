"""Shared parts of ridge and logistic probes of many feature sets: result, second moments and accuracies."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

import torch
from torch.nn import functional as F

from .feature_store import Rows, pieces_of


EPS = 1e-6  # added to variances, as in the linear probe, so that constant features stay at zero
MOMENTS_BYTES = 256 * 2**20  # of second moments that are held at once: so many feature sets are worked on together

Part = tuple[torch.Tensor | Rows, torch.Tensor]  # features (n, F, C) and classes (n,)
# Sums a tensor on the CPU over the processes that each have some of the examples, in place; see `shared_work.add_up`.
Reduce = Callable[[torch.Tensor], torch.Tensor]


def alone(tensor: torch.Tensor) -> torch.Tensor:
    """Return the sum over one process that has all examples."""
    return tensor


@dataclass(frozen=True)
class GridProbes:
    """Linear probes of F feature sets.

    Args:
        weight (`torch.Tensor` of shape `(F, C, K)`): Weights of raw features, in float64.
        bias (`torch.Tensor` of shape `(F, K)`): Biases.
        penalty (`torch.Tensor` of shape `(F,)`): The penalty chosen for each set.
        held_out (`torch.Tensor` of shape `(F,)`): The held-out accuracy that chose it.
        held_out_loss (`torch.Tensor` of shape `(F,)`): The least loss on the held-out examples over the penalties,
            which decides between feature sets of equal accuracy.
        test (`torch.Tensor` of shape `(F,)`): Test accuracy.
    """

    name: ClassVar[str]
    penalties: ClassVar[tuple[float, ...]]
    seeds: ClassVar[int] = 0  # nothing in them is random

    weight: torch.Tensor
    bias: torch.Tensor
    penalty: torch.Tensor
    held_out: torch.Tensor
    held_out_loss: torch.Tensor
    test: torch.Tensor

    @property
    def best(self) -> int:
        """Index of the feature set with the highest held-out accuracy; of equal ones that of the least loss."""
        return max(range(len(self.held_out)), key=lambda index: (self.held_out_score(index), self.tie_break(index)))

    def score(self, index: int) -> tuple[float, float | None]:
        """Return the test accuracy of a feature set, and no standard error: nothing in it is random."""
        return float(self.test[index]), None

    def held_out_score(self, index: int) -> float:
        """Return the held-out accuracy at the chosen penalty, of the probe that had not seen the held-out images."""
        return float(self.held_out[index])

    def tie_break(self, index: int) -> float:
        """Return what decides between feature sets of equal held-out accuracy, the larger the better.

        On easy data many reach the same accuracy, and their losses still differ.
        """
        return -float(self.held_out_loss[index])

    def describe(self, index: int) -> dict[str, Any]:
        """Describe how the probe of a feature set was fitted."""
        return {"penalty": float(self.penalty[index]), "penalties_tried": list(self.penalties)}

    def predict(self, features: torch.Tensor) -> torch.Tensor:
        """Predict classes `(n, F)` of features `(n, F, C)`."""
        x = features.cpu().double().transpose(0, 1)  # (F, n, C)
        return torch.baddbmm(self.bias[:, None], x, self.weight).argmax(dim=-1).T

    def folded(self, feature_index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return one probe as `torch.nn.Linear` holds it: `(weight (K, C), bias (K,))` in float32."""
        return self.weight[feature_index].T.float().contiguous(), self.bias[feature_index].float()


class Moments:
    """Sums over n examples of F feature sets: of x `(F, C)`, x x^T `(F, C, C)`, x y^T `(F, C, K)` and y `(K,)`."""

    def __init__(self, num_sets: int, c: int, num_classes: int, reduce: Reduce = alone) -> None:
        self.sums = torch.zeros(num_sets, c, 1 + c + num_classes, dtype=torch.float64)
        self.y, self.reduce = torch.zeros(num_classes, dtype=torch.float64), reduce
        self.origin: torch.Tensor | None = None  # (F, 1, C), subtracted first: a large mean would cost digits

    def add(self, sets: slice, features: torch.Tensor | Rows, labels: torch.Tensor) -> None:
        """Add examples: features `(n, F, C)`, of which `sets` are taken, and classes `(n,)`."""
        if self.origin is None:
            self.origin = self._mean_of_first_pieces(sets, features)
        sums = self.sums if self.reduce is alone else torch.zeros_like(self.sums)
        c, begin = sums.shape[1], 0
        for piece in pieces_of(features, copies=8):
            x = piece[:, sets].cpu().double().transpose(0, 1) - self.origin  # (F, b, C)
            y = F.one_hot(labels[begin : begin + x.shape[1]].cpu(), len(self.y)).double()  # (b, K)
            begin += x.shape[1]
            sums[..., 0] += x.sum(dim=1)
            sums[..., 1 : 1 + c] += x.mT @ x
            sums[..., 1 + c :] += x.mT @ y
        self.y += self.reduce(labels.cpu().bincount(minlength=len(self.y)).double())
        if sums is not self.sums:
            self.sums += self.reduce(sums)

    def _mean_of_first_pieces(self, sets: slice, features: torch.Tensor | Rows) -> torch.Tensor:
        """Compute the mean of a few examples of each process, `(F, 1, C)`."""
        total, count = self.sums.new_zeros(len(self.sums), 1, self.sums.shape[1]), self.sums.new_zeros(1)
        for piece in islice(pieces_of(features, copies=8), 1):
            total += piece[:, sets].cpu().double().sum(dim=0)[:, None]
            count += len(piece)
        return self.reduce(total) / self.reduce(count)

    @property
    def n(self) -> int:
        """Number of examples."""
        return int(self.y.sum())

    @property
    def x(self) -> torch.Tensor:
        """Sums of the features from the origin, `(F, C)`."""
        return self.sums[..., 0]

    @property
    def xy(self) -> torch.Tensor:
        """Sums of the products of features and classes, `(F, C, K)`."""
        return self.sums[..., 1 + self.sums.shape[1] :]

    @property
    def mean(self) -> torch.Tensor:
        """Means of the raw features, `(F, C)`."""
        assert self.origin is not None
        return self.x / self.n + self.origin[:, 0]

    @property
    def covariance(self) -> torch.Tensor:
        """Covariances of the features, `(F, C, C)`."""
        mean = self.x / self.n  # (F, C), from the origin
        xx = self.sums[..., 1 : 1 + self.sums.shape[1]]
        return xx / self.n - mean[:, :, None] * mean[:, None, :]

    def standardise(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Compute the features' standard deviations and the eigenbasis of the standardised features' covariance.

        Returns:
            `(std (F, C), values (F, C), vectors (F, C, C))`; eigenvalues rise and are at least 0.
        """
        covariance = self.covariance
        std = (covariance.diagonal(dim1=1, dim2=2).clamp(min=0) + EPS).sqrt()  # (F, C)
        values, vectors = torch.linalg.eigh(covariance / (std[:, :, None] * std[:, None, :]))
        return std, values.clamp(min=0), vectors


def check_parts(penalties: Sequence[float], reduce: Reduce = alone, **parts: Part) -> None:
    """Check the penalties and the parts of the data that a grid of probes is fitted to.

    Raises:
        ValueError: If a penalty is not positive, or a part is empty or has other than one class an example.
    """
    if not penalties or min(penalties) <= 0:
        raise ValueError(f"penalties={tuple(penalties)} must be one or more positive numbers.")
    for name, (features, labels) in parts.items():
        num_features, num_classes = reduce(torch.tensor([len(features), len(labels)])).tolist()
        if num_classes == 0 or num_features != num_classes:
            raise ValueError(
                f"{name} has {num_features} features and {num_classes} classes; give as many, at least 1."
            )


def score_grid(
    sets: slice,
    part: Part,
    weight: torch.Tensor,
    bias: torch.Tensor,
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    reduce: Reduce = alone,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Score the probes of P penalties and F feature sets on some examples.

    Args:
        sets (`slice`): The feature sets that are taken.
        part (`tuple`): Features `(n, F, C)` of all sets and classes `(n,)`.
        weight (`torch.Tensor` of shape `(P, F, C, K)`): The probes' weights.
        bias (`torch.Tensor` of shape `(P, F, K)`): Their biases.
        loss (`Callable`): Computes each example's loss `(F, b)` from scores `(F, b, K)` and classes `(b,)`.
        reduce (`Callable`, *optional*): Sums over the processes that each have some of the examples.

    Returns:
        `(accuracies, losses)`, both `(P, F)`: means over the examples.
    """
    features, labels = part
    hits, losses, begin = torch.zeros(weight.shape[:2], dtype=torch.float64), torch.zeros_like(bias[..., 0]), 0
    for piece in pieces_of(features, copies=8):
        x = piece[:, sets].cpu().double().transpose(0, 1)  # (F, b, C)
        truth = labels[begin : begin + x.shape[1]].cpu()
        begin += x.shape[1]
        for p in range(len(weight)):
            scores = torch.baddbmm(bias[p][:, None], x, weight[p])  # (F, b, K)
            hits[p] += (scores.argmax(dim=-1) == truth).sum(dim=1)
            losses[p] += loss(scores, truth).sum(dim=1)
    count = reduce(torch.tensor(len(labels)))
    return reduce(hits) / count, reduce(losses) / count


def choose_largest(accuracies: torch.Tensor) -> torch.Tensor:
    """Choose the best of P rising penalties for each set, of equally good ones the largest: `(P, F)` to `(F,)`."""
    return len(accuracies) - 1 - accuracies.flip(0).argmax(dim=0)
