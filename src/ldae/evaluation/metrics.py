"""Accuracy, also as a metric of the `evaluate` library, and mean and standard error over repeats."""

import math
from collections.abc import Sequence

import datasets
import evaluate
import numpy as np
import torch


class Accuracy(evaluate.Metric):
    """Top-1 accuracy as a metric of the `evaluate` library, for `Trainer` and other tools that take one.

    It is instantiated and not loaded, since `evaluate.load` asks the Hub.

    Example:
        >>> Accuracy().compute(predictions=[0, 1, 1, 2], references=[0, 1, 2, 2])
        {'accuracy': 0.75}
    """

    def _info(self) -> evaluate.MetricInfo:
        features = {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
        return evaluate.MetricInfo(
            description="The share of predictions that equal their reference.",
            citation="",
            inputs_description="predictions: class indices. references: class indices, as many.",
            features=datasets.Features(features),
        )

    def _compute(self, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        return {"accuracy": accuracy(torch.as_tensor(predictions), torch.as_tensor(references))}


def accuracy(predictions: torch.Tensor, references: torch.Tensor) -> float:
    """Compute the top-1 accuracy of class indices `(n,)`, a fraction between 0 and 1.

    Raises:
        ValueError: If there is nothing to compare, or the shapes differ.

    Example:
        >>> accuracy(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 2]))
        0.6666666666666666
    """
    if predictions.shape != references.shape or predictions.ndim != 1 or len(predictions) == 0:
        raise ValueError(
            f"accuracy needs predictions and references of one shape (n,) with n > 0; got {tuple(predictions.shape)} "
            f"and {tuple(references.shape)}."
        )
    return (predictions == references.to(predictions.device)).double().mean().item()


def mean_and_stderr(values: Sequence[float]) -> tuple[float, float | None]:
    """Compute the mean of repeated measurements and its standard error, s / sqrt(n), s with n - 1.

    A single value has no spread, and `None` as its standard error.

    Raises:
        ValueError: If there are no values.

    Example:
        >>> mean_and_stderr([0.25, 0.75])
        (0.5, 0.25)
        >>> mean_and_stderr([0.5])
        (0.5, None)
    """
    if not values:
        raise ValueError("the mean of no values is undefined; give at least one.")
    mean = float(np.mean(values))
    if len(values) == 1:
        return mean, None
    return mean, float(np.std(values, ddof=1) / math.sqrt(len(values)))
