"""Shared parts of ridge and logistic probes of many feature sets: result, second moments and accuracies."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.nn import functional as F

from .feature_store import Rows, pieces_of


EPS = 1e-6  # added to variances, as in the linear probe, so that constant features stay at zero
MOMENTS_BYTES = 256 * 2**20  # of second moments that are held at once: so many feature sets are worked on together

Part = tuple[torch.Tensor | Rows, torch.Tensor]  # features (n, F, C) and classes (n,)


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

    def __init__(self, num_sets: int, c: int, num_classes: int) -> None:
        zeros = torch.zeros(num_sets, c, 1 + c + num_classes, dtype=torch.float64)
        self.x, self.xx, self.xy = zeros[..., 0], zeros[..., 1 : 1 + c], zeros[..., 1 + c :]
        self.y, self.n = torch.zeros(num_classes, dtype=torch.float64), 0
        self.origin: torch.Tensor | None = None  # subtracted first: a large mean would cost digits

    def add(self, sets: slice, features: torch.Tensor | Rows, labels: torch.Tensor) -> None:
        """Add examples: features `(n, F, C)`, of which `sets` are taken, and classes `(n,)`."""
        begin = 0
        for piece in pieces_of(features, copies=8):
            x = piece[:, sets].cpu().double().transpose(0, 1)  # (F, b, C)
            if self.origin is None:
                self.origin = x.mean(dim=1, keepdim=True)  # (F, 1, C)
            x = x - self.origin
            y = F.one_hot(labels[begin : begin + x.shape[1]].cpu(), len(self.y)).double()  # (b, K)
            begin += x.shape[1]
            self.x += x.sum(dim=1)
            self.xx += x.mT @ x
            self.xy += x.mT @ y
            self.y += y.sum(dim=0)
            self.n += x.shape[1]

    @property
    def mean(self) -> torch.Tensor:
        """Means of the raw features, `(F, C)`."""
        assert self.origin is not None
        return self.x / self.n + self.origin[:, 0]

    @property
    def covariance(self) -> torch.Tensor:
        """Covariances of the features, `(F, C, C)`."""
        mean = self.x / self.n  # (F, C), from the origin
        return self.xx / self.n - mean[:, :, None] * mean[:, None, :]

    def standardise(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Compute the features' standard deviations and the eigenbasis of the standardised features' covariance.

        Returns:
            `(std (F, C), values (F, C), vectors (F, C, C))`; eigenvalues rise and are at least 0.
        """
        covariance = self.covariance
        std = (covariance.diagonal(dim1=1, dim2=2).clamp(min=0) + EPS).sqrt()  # (F, C)
        values, vectors = torch.linalg.eigh(covariance / (std[:, :, None] * std[:, None, :]))
        return std, values.clamp(min=0), vectors


def check_parts(penalties: Sequence[float], **parts: Part) -> None:
    """Check the penalties and the parts of the data that a grid of probes is fitted to.

    Raises:
        ValueError: If a penalty is not positive, or a part is empty or has other than one class an example.
    """
    if not penalties or min(penalties) <= 0:
        raise ValueError(f"penalties={tuple(penalties)} must be one or more positive numbers.")
    for name, (features, labels) in parts.items():
        if len(labels) == 0 or len(features) != len(labels):
            raise ValueError(
                f"{name} has {len(features)} features and {len(labels)} classes; give as many, at least 1."
            )


def score_grid(
    sets: slice,
    part: Part,
    weight: torch.Tensor,
    bias: torch.Tensor,
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Score the probes of P penalties and F feature sets on some examples.

    Args:
        sets (`slice`): The feature sets that are taken.
        part (`tuple`): Features `(n, F, C)` of all sets and classes `(n,)`.
        weight (`torch.Tensor` of shape `(P, F, C, K)`): The probes' weights.
        bias (`torch.Tensor` of shape `(P, F, K)`): Their biases.
        loss (`Callable`): Of scores `(F, b, K)` and classes `(b,)`: each example's loss `(F, b)`.

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
    return hits / len(labels), losses / len(labels)


def choose_largest(accuracies: torch.Tensor) -> torch.Tensor:
    """Choose the best of P rising penalties for each set, of equally good ones the largest: `(P, F)` to `(F,)`."""
    return len(accuracies) - 1 - accuracies.flip(0).argmax(dim=0)
