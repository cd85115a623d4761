import math

import pytest
import torch

from ldae.evaluation.knn import knn_accuracy, knn_predict


def brute_force(train, labels, x, k, temperature):
    votes = {}
    similarity = [(float(torch.dot(x, t) / x.norm() / t.norm()), int(y)) for t, y in zip(train, labels, strict=True)]
    for value, label in sorted(similarity, reverse=True)[:k]:
        votes[label] = votes.get(label, 0.0) + math.exp((value - 1) / temperature)
    return max(sorted(votes), key=votes.get)


@pytest.mark.parametrize("k, temperature", [(1, 0.07), (5, 0.07), (20, 1.0), (5, 1e-3)])
def test_equals_a_loop_over_examples(k, temperature):
    generator = torch.Generator().manual_seed(0)
    train = torch.randn(60, 8, generator=generator)
    labels = torch.randint(0, 5, (60,), generator=generator)
    test = torch.randn(33, 8, generator=generator)
    expected = torch.tensor([brute_force(train, labels, x, k, temperature) for x in test])
    for chunk_size in (7, 1024):
        got = knn_predict(train, labels, test, k=k, temperature=temperature, chunk_size=chunk_size)
        assert torch.equal(got, expected)


def test_scale_of_a_feature_does_not_matter():
    generator = torch.Generator().manual_seed(1)
    train, test = torch.randn(40, 6, generator=generator), torch.randn(9, 6, generator=generator)
    labels = torch.arange(40) % 4
    scales = 10 ** torch.linspace(-2, 2, 40)[:, None]
    assert torch.equal(knn_predict(train, labels, test), knn_predict(train * scales, labels, test * 100))


def test_accuracy_counts_the_predictions():
    generator = torch.Generator().manual_seed(2)
    train, test = torch.randn(40, 6, generator=generator), torch.randn(30, 6, generator=generator)
    labels, test_labels = torch.arange(40) % 3, torch.arange(30) % 3
    expected = (knn_predict(train, labels, test, k=3) == test_labels).double().mean().item()
    assert knn_accuracy(train, labels, test, test_labels, k=3) == pytest.approx(expected)


@pytest.mark.parametrize(
    "options, named", [({"k": 0}, "k=0"), ({"k": 5}, "k=5"), ({"temperature": 0.0}, "temperature")]
)
def test_impossible_options_are_refused(options, named):
    train = torch.eye(4)
    with pytest.raises(ValueError, match=named):
        knn_predict(train, torch.arange(4), train, **({"k": 2} | options))
