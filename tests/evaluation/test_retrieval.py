"""Mean average precision against scikit-learn's, query by query."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch.nn import functional as F

from ldae.evaluation.knn import retrieval_map


def test_equals_scikit_learns_average_precision():
    generator = torch.Generator().manual_seed(0)
    gallery, queries = torch.randn(40, 5, generator=generator), torch.randn(13, 5, generator=generator)
    labels, query_labels = torch.arange(40) % 4, torch.arange(13) % 5  # of the fifth class there is none to be found
    similarity = F.normalize(queries, dim=1) @ F.normalize(gallery, dim=1).T
    expected = [
        average_precision_score(labels == label, row.numpy())
        for label, row in zip(query_labels, similarity, strict=True)
        if label < 4
    ]
    found = retrieval_map(gallery, labels, queries, query_labels, chunk_size=4)
    assert found == pytest.approx(np.mean(expected), abs=1e-6)
    assert retrieval_map(3 * gallery, labels, queries, query_labels) == pytest.approx(found, abs=1e-6)


def test_the_best_and_the_worst_order():
    gallery = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
    query = torch.tensor([[1.0, 0.0]])
    assert retrieval_map(gallery, torch.tensor([1, 1, 0, 0]), query, torch.tensor([1])) == 1
    worst = retrieval_map(gallery, torch.tensor([1, 1, 0, 0]), query, torch.tensor([0]))
    assert worst == pytest.approx((1 / 3 + 2 / 4) / 2)


def test_nothing_to_find_is_refused():
    one = torch.ones(1, 2)
    with pytest.raises(ValueError, match="no query's class is in the gallery"):
        retrieval_map(one, torch.tensor([0]), one, torch.tensor([1]))
    with pytest.raises(ValueError, match="a gallery of 0 and 1 queries"):
        retrieval_map(one[:0], torch.tensor([]).long(), one, torch.tensor([1]))
