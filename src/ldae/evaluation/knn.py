"""Weighted k-nearest-neighbour classification of features: no training, no choices to tune."""

import torch
from torch.nn import functional as F

from .metrics import accuracy


def knn_predict(
    train_features: torch.Tensor,
    train_labels: torch.Tensor,
    features: torch.Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
    chunk_size: int = 1024,
) -> torch.Tensor:
    """The class with the largest sum of exp(cosine similarity / temperature) among the k nearest training examples.

    This is the weighted kNN usual for self-supervised encoders (Wu et al. 2018; DINO). k = 20 is the value that does
    best there on ImageNet; their other one, 200, is more than a class has in small data sets. Of classes with equal
    votes the lowest index wins.

    Args:
        train_features (`torch.Tensor` of shape `(n, C)`): Features of the training examples; they are normalised here.
        train_labels (`torch.LongTensor` of shape `(n,)`): Their classes.
        features (`torch.Tensor` of shape `(m, C)`): Features to classify.
        k (`int`, defaults to 20): Number of neighbours that vote.
        temperature (`float`, defaults to 0.07): Temperature of the votes.
        chunk_size (`int`, defaults to 1024): Rows of `features` compared at a time; bounds memory to chunk_size x n.

    Returns:
        `torch.LongTensor` of shape `(m,)`.

    Raises:
        ValueError: If k is not between 1 and n, or the temperature is not positive.

    Example:
        >>> train = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
        >>> knn_predict(train, torch.tensor([4, 4, 7]), torch.tensor([[1.0, 0.2], [0.1, 1.0]]), k=1)
        tensor([4, 7])
    """
    if not 1 <= k <= len(train_features):
        raise ValueError(f"k={k} must be from 1 to {len(train_features)}, the number of training examples.")
    if temperature <= 0:
        raise ValueError(f"temperature={temperature} must be positive.")
    train = F.normalize(train_features.float(), dim=1)
    labels = train_labels.to(train.device)
    num_classes = int(labels.max()) + 1
    predictions = []
    for chunk in features.split(chunk_size):
        similarity = F.normalize(chunk.to(train), dim=1) @ train.T  # (b, n)
        nearest, index = similarity.topk(k, dim=1)  # (b, k)
        # Similarities are at most 1: subtracting it changes no ordering and keeps exp from overflowing.
        weights = ((nearest - 1) / temperature).exp()
        votes = weights.new_zeros(len(chunk), num_classes).scatter_add_(1, labels[index], weights)  # (b, K)
        predictions.append(votes.argmax(dim=1))
    return torch.cat(predictions)


def knn_accuracy(
    train_features: torch.Tensor,
    train_labels: torch.Tensor,
    test_features: torch.Tensor,
    test_labels: torch.Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Top-1 accuracy of [`knn_predict`] on a test set; arguments as there, and the true classes `(m,)`."""
    predictions = knn_predict(train_features, train_labels, test_features, k=k, temperature=temperature)
    return accuracy(predictions, test_labels)
