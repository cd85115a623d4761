"""Closed-form ridge probe: a linear classifier in a fraction of a second, with all labels or a few of each class."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from .grid_probes import (
    EPS,
    MOMENTS_BYTES,
    GridProbes,
    Moments,
    Part,
    Reduce,
    alone,
    check_parts,
    choose_largest,
    score_grid,
)
from .metrics import accuracy


# Penalties tried. Features have unit variance and the squared error is a mean over examples, so a penalty is in units
# of the mean eigenvalue of the features' covariance, whatever their number: 1e-5 is no penalty, 1e3 is almost all.
RIDGE_PENALTIES: tuple[float, ...] = tuple(10.0 ** (i / 2) for i in range(-10, 7))


@dataclass(frozen=True)
class RidgeProbes(GridProbes):
    """Ridge probes of F feature sets; see [`~ldae.evaluation.grid_probes.GridProbes`]."""

    name = "ridge"
    penalties = RIDGE_PENALTIES


def fit_ridge_grid(
    fitted: Part,
    held: Part,
    test: Part,
    *,
    num_classes: int,
    penalties: Sequence[float] = RIDGE_PENALTIES,
    reduce: Reduce = alone,
) -> RidgeProbes:
    """Fit one-hot targets by ridge regression on every feature set, solved in float64.

    Features are centred and scaled with the training set's statistics (a BatchNorm without parameters). The objective
    is mean_i ||y_i - b - W^T x_i||^2 + penalty ||W||^2, with b not penalised.

    The penalty of each set is the one that does best on the held-out examples, of equally good ones the largest; the
    probe is then fitted to them too. What is fitted are second moments, float64 sums over examples: features are read
    in pieces and never all held.

    Args:
        fitted (`tuple`): Features `(n, F, C)`, a tensor or rows of a store, and classes `(n,)`.
        held (`tuple`): Those of the held-out examples.
        test (`tuple`): Those of the test set, which chooses nothing.
        num_classes (`int`): K.
        penalties (`Sequence[float]`, defaults to `RIDGE_PENALTIES`): The grid.
        reduce (`Callable`, *optional*): Sums a tensor over processes, such as [`~ldae.shared_work.add_up`], if each
            process has some of the examples. All then call this and get the same probes.

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
    check_parts(penalties, reduce, fitted=fitted, held=held, test=test)
    _, num_sets, c = fitted[0].shape
    together = max(1, MOMENTS_BYTES // (8 * c * c))
    parts = []
    for begin in range(0, num_sets, together):
        sets = slice(begin, begin + together)
        parts.append(_fit_sets(sets, fitted, held, test, num_classes, sorted(penalties), reduce))
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
    sets: slice, fitted: Part, held: Part, test: Part, num_classes: int, penalties: list[float], reduce: Reduce
) -> tuple[torch.Tensor, ...]:
    """Compute the fields of [`RidgeProbes`] for some of the feature sets."""
    count, c = len(range(*sets.indices(fitted[0].shape[1]))), fitted[0].shape[2]
    moments = Moments(count, c, num_classes, reduce)
    moments.add(sets, *fitted)
    accuracies, losses = score_grid(sets, held, *_solve(moments, penalties), _squared_error, reduce)  # (P, F)
    best, index = choose_largest(accuracies), torch.arange(count)  # (F,)
    moments.add(sets, *held)
    weights, biases = _solve(moments, penalties)
    weight, bias = weights[best, index], biases[best, index]  # (F, C, K), (F, K)
    scores = score_grid(sets, test, weight[None], bias[None], _squared_error, reduce)[0][0]
    penalty = torch.tensor(penalties, dtype=torch.float64)[best]
    return weight, bias, penalty, accuracies[best, index], losses.amin(dim=0), scores


def _squared_error(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return (scores - F.one_hot(labels, scores.shape[-1])).square().sum(dim=-1)  # (F, b)


class _RidgePath:
    """Ridge regression of one-hot targets on standardised features, factorised once for every penalty.

    It minimises mean_i ||y_i - b - W^T x_i||^2 + penalty ||W||^2; the intercept b is not penalised. With the thin SVD
    X = P diag(s) Q^T of the centred features (rank at most min(n, C)), W = Q diag(s / (s^2 + n penalty)) P^T Y.
    """

    def __init__(self, features: torch.Tensor, labels: torch.Tensor, num_classes: int):
        x = features.double()
        self.mean = x.mean(dim=0)
        self.std = (x.var(dim=0, unbiased=False) + EPS).sqrt()
        x = (x - self.mean) / self.std  # (n, C)
        y = F.one_hot(labels, num_classes).double()  # (n, K)
        self.n, self.bias = len(x), y.mean(dim=0)
        self.y = y - self.bias
        # The eigenvectors of the smaller second-moment matrix give the thin SVD at the least cost.
        if x.shape[0] >= x.shape[1]:
            square, self.right = torch.linalg.eigh(x.T @ x)  # (r,), (C, r)
            self.scaled_left = x @ self.right  # (n, r): P diag(s)
        else:
            square, left = torch.linalg.eigh(x @ x.T)  # (r,), (n, r)
            self.scaled_left = left * square.clamp(min=0).sqrt()
            self.right = x.T @ left / square.clamp(min=1e-12 * square[-1].item() + 1e-300).sqrt()  # (C, r)
        self.square = square.clamp(min=0)
        self.projected = self.scaled_left.T @ self.y  # (r, K): diag(s) P^T Y

    def scores(self, features: torch.Tensor, penalty: float) -> torch.Tensor:
        """Compute scores `(m, K)` of features `(m, C)` by the probe of one penalty."""
        weight = self.right @ (self.projected / (self.square + self.n * penalty)[:, None])  # (C, K)
        return (features.double() - self.mean) / self.std @ weight + self.bias

    def leave_one_out_scores(self, penalty: float) -> torch.Tensor:
        """Score each example by the probe of all others, `(n, K)`, without refitting and without the intercept.

        The intercept is the share of each class among the others, which is least for the class that was left out.
        """
        shrunk = self.scaled_left / (self.square + self.n * penalty)  # (n, r)
        residual = self.y - shrunk @ self.projected
        leverage = (shrunk * self.scaled_left).sum(dim=1, keepdim=True) + 1 / self.n  # of the hat matrix
        intercept = self.y / (self.n - 1)  # what the left-out example takes from the others' intercept
        return self.y - residual / (1 - leverage) + intercept

    def leave_one_out_correlation(self, penalty: float) -> float:
        """Compute the correlation of the leave-one-out scores with the centred targets."""
        return float(F.cosine_similarity(self.leave_one_out_scores(penalty).flatten(), self.y.flatten(), dim=0))


def few_shot_ridge(
    train_features: torch.Tensor,
    train_labels: torch.Tensor,
    test_features: torch.Tensor,
    test_labels: torch.Tensor,
    *,
    shots: int = 5,
    draws: int = 20,
    seed: int = 0,
    penalties: Sequence[float] = RIDGE_PENALTIES,
) -> list[float]:
    """Score ridge probes fitted to a few labels of each class, which are drawn several times.

    A handful of labels leaves none to hold out, so each draw takes the penalty whose leave-one-out scores, which ridge
    regression has in closed form, correlate best with the drawn labels. (Accuracy moves in steps over so few examples,
    and squared error asks for the right size of the scores, which is not what classifies.) No fixed penalty would suit
    raw pixels and short features alike. Draws depend on the labels and the seed alone: all feature sets compared see
    the same examples.

    Args:
        train_features (`torch.Tensor` of shape `(n, C)`): Features of the training examples.
        train_labels (`torch.LongTensor` of shape `(n,)`): Their classes.
        test_features (`torch.Tensor` of shape `(m, C)`): Features of the test examples.
        test_labels (`torch.LongTensor` of shape `(m,)`): Their classes.
        shots (`int`, defaults to 5): Labelled examples of each class, at least 2.
        draws (`int`, defaults to 20): Number of draws.
        seed (`int`, defaults to 0): Seed of the draws.
        penalties (`Sequence[float]`, defaults to `RIDGE_PENALTIES`): The grid.

    Returns:
        `list[float]`: one accuracy a draw; see [`~ldae.evaluation.metrics.mean_and_stderr`].

    Raises:
        ValueError: If a class has fewer examples than `shots`, or shots < 2.
    """
    if train_features.ndim != 2 or train_labels.shape != train_features.shape[:1] or len(train_labels) == 0:
        raise ValueError(
            f"features must be (n, C) and labels (n,) with n > 0; got {tuple(train_features.shape)} and "
            f"{tuple(train_labels.shape)}."
        )
    num_classes = int(torch.maximum(train_labels.max(), test_labels.max())) + 1
    accuracies = []
    for index in draw_shots(train_labels, shots, draws, seed):
        path = _RidgePath(train_features[index], train_labels[index], num_classes)
        penalty = max(penalties, key=path.leave_one_out_correlation)
        accuracies.append(accuracy(path.scores(test_features, penalty).argmax(dim=1), test_labels))
    return accuracies


def draw_shots(labels: torch.Tensor, shots: int, draws: int, seed: int) -> list[torch.Tensor]:
    """Draw `shots` examples of each class present, `draws` times, by the labels and the seed alone.

    Returns:
        `list[torch.LongTensor]`: indices, each of shape `(shots * classes,)`.

    Raises:
        ValueError: If a class has too few examples.

    Example:
        >>> [sorted(index.tolist()) for index in draw_shots(torch.tensor([0, 0, 1, 1]), 2, 1, seed=0)]
        [[0, 1, 2, 3]]
    """
    if shots < 2:
        raise ValueError(f"shots={shots} must be 2 or more: leave-one-out needs two examples of each class.")
    members = [(labels == label).nonzero().flatten() for label in labels.unique()]
    fewest = min(len(indices) for indices in members)
    if fewest < shots:
        remedy = "give at most that" if fewest > 1 else "probe with all labels, or leave this class out"
        raise ValueError(f"shots={shots} is more than the {fewest} examples of the smallest class; {remedy}.")
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.cat([indices[torch.randperm(len(indices), generator=generator)[:shots]] for indices in members])
        for _ in range(draws)
    ]
