"""Logistic probes of many feature sets, solved until they have converged, over a grid of L2 penalties."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F

from ldae.shared_work import is_main

from .feature_store import Rows, pieces_of
from .grid_probes import (
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
from .newton import Solution, WhitenedFeatures, solve_logistic


# Penalties tried. The loss is a mean over examples, features have unit variance; scikit-learn's C is 1 / (n penalty).
LOGISTIC_PENALTIES: tuple[float, ...] = tuple(10.0**i for i in range(-9, 1))
# Gradient norm, relative to that without features, below which a probe counts as converged; see `solve_logistic`.
TOLERANCE = 3e-4
MAX_ITERATIONS = 100  # Newton steps at one penalty
WHITENED_BYTES = 512 * 2**20  # of features that are kept in memory while probes of them are solved


@dataclass(frozen=True)
class LogisticProbes(GridProbes):
    """Logistic probes of F feature sets; the first fields are those of `GridProbes`.

    Args:
        converged (`torch.BoolTensor` of shape `(F,)`): Whether every solution that the probe rests on reached the
            tolerance: that of each penalty, among which one was chosen, and the last one.
        iterations (`torch.LongTensor` of shape `(F,)`): Newton steps, over all penalties and the last fit.
        gradient (`torch.Tensor` of shape `(F,)`): Relative gradient norm of the last fit.
        loss (`torch.Tensor` of shape `(F,)`): Penalised training loss of the last fit, in nats.
    """

    name = "logistic"
    penalties = LOGISTIC_PENALTIES

    converged: torch.Tensor
    iterations: torch.Tensor
    gradient: torch.Tensor
    loss: torch.Tensor

    def describe(self, index: int) -> dict[str, Any]:
        """Describe penalty, optimiser and stopping rule, and whether it was reached."""
        return {
            **super().describe(index),
            "optimizer": "Newton-CG",
            "tolerance": TOLERANCE,
            "max_iterations": MAX_ITERATIONS,
            "converged": bool(self.converged[index]),
            "iterations": int(self.iterations[index]),
            "standardised": True,
        }


def fit_logistic_grid(
    fitted: Part,
    held: Part,
    test: Part,
    *,
    num_classes: int,
    penalties: Sequence[float] = LOGISTIC_PENALTIES,
    names: Sequence[str] | None = None,
    tolerance: float = TOLERANCE,
    max_iterations: int = MAX_ITERATIONS,
    memory: int = WHITENED_BYTES,
    reduce: Reduce = alone,
) -> LogisticProbes:
    """Fit a multinomial logistic regression to every feature set, solved until it has converged.

    Features are centred and scaled to unit variance with the training set's statistics. The objective is
    mean_i CE(W^T x_i + b, y_i) + penalty / 2 ||W||^2 with b not penalised, minimised by Newton's method; see
    [`~ldae.evaluation.newton.solve_logistic`] for the stopping rule. The penalty of each set is the one that does best
    on the held-out examples, of equally good ones the largest; the probe is then fitted to them too.

    Args:
        fitted (`tuple`): Features `(n, F, C)`, a tensor or rows of a store, and classes `(n,)`.
        held (`tuple`): Those of the held-out examples.
        test (`tuple`): Those of the test set, which chooses nothing.
        num_classes (`int`): K. A class without training examples is never predicted.
        penalties (`Sequence[float]`, defaults to `LOGISTIC_PENALTIES`): The grid.
        names (`Sequence[str]`, *optional*): Names of the feature sets, for messages; by default their indices.
        tolerance (`float`, defaults to 3e-4): Relative gradient norm to reach.
        max_iterations (`int`, defaults to 100): Most Newton steps at one penalty.
        memory (`int`, defaults to 512 MiB): Bytes of features to keep while solving. As many sets as fit are solved
            together; a set that does not fit is read anew in every step.
        reduce (`Callable`, *optional*): As in [`~ldae.evaluation.ridge.fit_ridge_grid`].

    Returns:
        [`LogisticProbes`]. A warning names the feature sets that have not converged.

    Raises:
        ValueError: If a part is empty, a penalty is not positive, or features are NaN or infinite.

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [0.2, 0.9], [1.0, 0.1], [0.9, 0.0]])[:, None]  # (n, F, C)
        >>> data = (x, torch.tensor([0, 0, 1, 1]))
        >>> probes = fit_logistic_grid(data, data, data, num_classes=2)
        >>> probes.test, probes.converged
        (tensor([1.], dtype=torch.float64), tensor([True]))
    """
    check_parts(penalties, reduce, fitted=fitted, held=held, test=test)
    _, num_sets, c = fitted[0].shape
    names = names or [str(index) for index in range(num_sets)]
    for part, (features, _) in (("fitted", fitted), ("held", held), ("test", test)):
        _check_finite(part, features, names, reduce)
    n = int(reduce(torch.tensor(len(fitted[1]) + len(held[1]))))  # of all processes, which take the same sets
    together = max(1, min(MOMENTS_BYTES // (8 * c * c), memory // (4 * n * c)))
    solve = partial(solve_logistic, tolerance=tolerance, max_iterations=max_iterations)
    fields = []
    for begin in range(0, num_sets, together):
        sets = slice(begin, min(begin + together, num_sets))
        fields.append(_fit_sets(sets, fitted, held, test, num_classes, sorted(penalties), solve, memory, reduce))
    probes = LogisticProbes(*map(torch.cat, zip(*fields, strict=True)))
    if is_main() and not probes.converged.all():
        left = ", ".join(names[index] for index in (~probes.converged).nonzero().flatten().tolist())
        warnings.warn(
            f"logistic probes of feature sets {left} have not converged to tolerance={tolerance} within "
            f"max_iterations={max_iterations}; raise max_iterations or leave out the smallest penalties.",
            stacklevel=2,
        )
    return probes


def _fit_sets(
    sets: slice,
    fitted: Part,
    held: Part,
    test: Part,
    num_classes: int,
    penalties: list[float],
    solve: Callable[..., Solution],
    memory: int,
    reduce: Reduce,
) -> tuple[torch.Tensor, ...]:
    """Compute the fields of [`LogisticProbes`] for some of the feature sets, at rising penalties."""
    count, c = sets.stop - sets.start, fitted[0].shape[2]
    moments = Moments(count, c, num_classes, reduce)
    moments.add(sets, *fitted)
    data = WhitenedFeatures([fitted], sets, moments, memory)
    raw, converged, iterations = [], torch.ones(count, dtype=torch.bool), torch.zeros(count, dtype=torch.long)
    theta: torch.Tensor | None = None
    for penalty in reversed(penalties):  # each starts from the solution of the next larger one
        solution = solve(data, torch.full((count,), penalty, dtype=torch.float64), theta)
        theta = solution.theta
        converged &= solution.converged
        iterations += solution.iterations
        raw.append(data.unwhiten(theta))
    del data  # before the features of the last fit are kept
    weights, biases = (torch.stack(parts[::-1]) for parts in zip(*raw, strict=True))  # (P, F, C, K), (P, F, K)
    accuracies, losses = score_grid(sets, held, weights, biases, _cross_entropy, reduce)  # (P, F)
    best, index = choose_largest(accuracies), torch.arange(count)  # (F,)
    penalty_of_set = torch.tensor(penalties, dtype=torch.float64)[best]

    moments.add(sets, *held)
    data = WhitenedFeatures([fitted, held], sets, moments, memory)
    solution = solve(data, penalty_of_set, data.start_at(weights[best, index]))
    weight, bias = data.unwhiten(solution.theta)
    scores = score_grid(sets, test, weight[None], bias[None], _cross_entropy, reduce)[0][0]
    chosen = (weight, bias, penalty_of_set, accuracies[best, index], losses.amin(dim=0), scores)
    converged &= solution.converged
    return *chosen, converged, iterations + solution.iterations, solution.gradient, solution.loss


def _cross_entropy(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Compute cross entropies `(F, b)` of scores `(F, b, K)`."""
    return F.cross_entropy(scores.flatten(0, 1), labels.repeat(len(scores)), reduction="none").view(scores.shape[:2])


def _check_finite(part: str, features: torch.Tensor | Rows, names: Sequence[str], reduce: Reduce) -> None:
    """Raise a ValueError that names the feature sets with values that are NaN or infinite."""
    wrong = torch.zeros(len(names), dtype=torch.long)
    for piece in pieces_of(features):
        wrong += (~piece.isfinite().all(dim=2)).sum(dim=0).cpu()
    wrong, count = reduce(wrong), int(reduce(torch.tensor(len(features))))
    if wrong.any():
        index = int(wrong.argmax())
        raise ValueError(
            f"the {part} features of feature set {names[index]} must be finite; {int(wrong[index])} of {count} "
            "examples have NaN or infinite values. Leave out this set, or compute it in float32."
        )
