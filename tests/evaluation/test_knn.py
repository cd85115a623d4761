import math

import pytest
import torch
from sklearn.decomposition import PCA

from ldae.evaluation.knn import fit_whitening, knn_accuracy, knn_predict, retrieval_map


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


def features_with_a_large_common_part(count, seed):
    """Make features `(count, 12)` of rank 6 with classes in small directions beside a large one of no class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    small = torch.randn(3, 5, generator=torch.Generator().manual_seed(9))[labels]
    small = small + 0.3 * torch.randn(count, 5, generator=generator)
    large = 30 * torch.randn(count, 1, generator=generator)
    mixing = torch.randn(6, 12, generator=torch.Generator().manual_seed(8))
    return 50 + torch.cat([large, 0.5 * small], dim=1) @ mixing, labels


@pytest.mark.parametrize("components", [1, 4, 12])
def test_whitening_equals_scikit_learns(components):
    features, _ = features_with_a_large_common_part(200, seed=0)
    new, _ = features_with_a_large_common_part(20, seed=1)
    kept = min(components, 6)  # the other directions are rounding
    expected = PCA(kept, whiten=True).fit(features.double().numpy()).transform(new.double().numpy())
    got = fit_whitening(features, components)(new)
    assert got.shape == (20, kept) and got.dtype == torch.float32
    gram = torch.from_numpy(expected @ expected.T).float() * 200 / 199  # scikit-learn divides by n - 1
    torch.testing.assert_close(got @ got.T, gram, rtol=1e-3, atol=1e-3)


def test_whitened_neighbours_heed_small_directions():
    train, labels = features_with_a_large_common_part(300, seed=0)
    test, classes = features_with_a_large_common_part(90, seed=1)
    raw, whitened = (knn_accuracy(train, labels, test, classes, k=10, whiten=n) for n in (None, 6))
    assert whitened > 0.95 > 0.6 > raw
    scores = [retrieval_map(train, labels, test, classes, whiten=n) for n in (None, 6)]
    assert scores[1] > scores[0] + 0.2
    whitening = fit_whitening(train, 6)
    assert whitened == knn_accuracy(whitening(train), labels, whitening(test), classes, k=10)


def test_whitening_without_components_is_refused():
    with pytest.raises(ValueError, match="whiten=0"):
        fit_whitening(torch.eye(4), 0)
    with pytest.raises(ValueError, match="all 3 features are the same"):
        fit_whitening(torch.ones(3, 4), 2)
