import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge, RidgeClassifier
from torch.nn import functional as F

from ldae.evaluation import ridge
from ldae.evaluation.grid_probes import EPS
from ldae.evaluation.probing import fit_probes
from ldae.evaluation.protocol import split_holdout
from ldae.evaluation.ridge import (
    RIDGE_PENALTIES,
    _RidgePath,
    draw_shots,
    few_shot_ridge,
    fit_ridge_grid,
)


def blobs(n, c, num_classes, seed=0, spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(num_classes, c, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(n) % num_classes
    scales = torch.linspace(0.2, 3, c)
    return (centres[labels] * spread + torch.randn(n, c, generator=generator)) * scales + 5, labels


def standardised(x, like):
    like = like.double()
    return (x.double() - like.mean(0)) / (like.var(0, unbiased=False) + EPS).sqrt()


@pytest.mark.parametrize("n, c", [(80, 12), (20, 50), (50, 50)])
@pytest.mark.parametrize("penalty", [1e-3, 1.0])
def test_equals_scikit_learns_ridge(n, c, penalty):
    x, y = blobs(n, c, 4)
    test, _ = blobs(30, c, 4, seed=1)
    z = standardised(x, x).numpy()
    targets = F.one_hot(y, 4).double().numpy()
    reference = Ridge(alpha=penalty * n, solver="svd").fit(z, targets)
    scores = _RidgePath(x, y, 4).scores(test, penalty)
    expected = reference.predict(standardised(test, x).numpy())
    np.testing.assert_allclose(scores.numpy(), expected, atol=1e-8)
    # Targets of -1 and 1 in place of 0 and 1 double the scores' differences and choose the same class.
    classifier = RidgeClassifier(alpha=penalty * n, solver="svd").fit(z, y.numpy())
    assert (classifier.predict(standardised(test, x).numpy()) == scores.argmax(dim=1).numpy()).all()


@pytest.mark.parametrize("n, c", [(30, 6), (14, 40)])
def test_leave_one_out_scores_are_those_of_refitting(n, c):
    x, y = blobs(n, c, 3)
    path, penalty = _RidgePath(x, y, 3), 0.3
    z = standardised(x, x)  # the scaling is a step before the regression, and stays
    targets = F.one_hot(y, 3).double()
    expected = []
    for i in range(n):
        rest = [j for j in range(n) if j != i]
        model = Ridge(alpha=penalty * n, solver="svd").fit(z[rest].numpy(), targets[rest].numpy())
        expected.append(model.predict(z[i : i + 1].numpy())[0] - targets[rest].numpy().mean(axis=0))
    scores = path.leave_one_out_scores(penalty).numpy()
    np.testing.assert_allclose(scores, expected, atol=1e-8)
    centred = (targets - targets.mean(0)).numpy()
    correlation = (expected * centred).sum() / np.linalg.norm(expected) / np.linalg.norm(centred)
    assert path.leave_one_out_correlation(penalty) == pytest.approx(correlation)


def test_constant_features_change_nothing():
    x, y = blobs(60, 5, 3)
    padded = torch.cat([x, torch.full((60, 2), 7.0)], dim=1)
    torch.testing.assert_close(_RidgePath(padded, y, 3).scores(padded, 0.1), _RidgePath(x, y, 3).scores(x, 0.1))


def test_few_shots_are_drawn_by_labels_and_seed_alone():
    labels = torch.arange(90) % 3
    draws = draw_shots(labels, 5, 4, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(draws, draw_shots(labels, 5, 4, seed=0), strict=True))
    assert not torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draw_shots(labels, 5, 4, seed=1)[0])
    for index in draws:
        assert len(index.unique()) == 15
        assert labels[index].bincount().tolist() == [5, 5, 5]


def test_few_shot_accuracies():
    x, y = blobs(150, 30, 3, spread=1.0)
    test, test_y = blobs(90, 30, 3, seed=1, spread=1.0)
    accuracies = few_shot_ridge(x, y, test, test_y, shots=5, draws=6)
    assert len(accuracies) == 6
    assert accuracies == few_shot_ridge(x, y, test, test_y, shots=5, draws=6)
    assert np.mean(accuracies) > 0.6  # chance is a third
    # The penalty does not look at the test set: half of it scores as it does within the whole.
    halves = [few_shot_ridge(x, y, test[half], test_y[half], draws=6) for half in (slice(0, 45), slice(45, 90))]
    np.testing.assert_allclose(np.mean(halves, axis=0), accuracies)


def test_impossible_options_are_refused():
    x, y = blobs(30, 4, 3)
    with pytest.raises(ValueError, match="shots=11 is more than the 10"):
        few_shot_ridge(x, y, x, y, shots=11)
    with pytest.raises(ValueError, match="shots=1 "):
        few_shot_ridge(x, y, x, y, shots=1)
    with pytest.raises(ValueError, match=r"holdout=0\.1 of 4 examples"):
        split_holdout(4)
    with pytest.raises(ValueError, match=r"\(n, C\)"):
        few_shot_ridge(x[:, 0], y, x, y)


def feature_sets(n, seed, c=9, classes=3):
    """Three feature sets (n, 3, C): far from zero, of low rank, and padded with zeros."""
    labels = torch.arange(n) % classes
    centres = torch.randn(classes, c, generator=torch.Generator().manual_seed(99))
    x = centres[labels] + 1.5 * torch.randn(n, c, generator=torch.Generator().manual_seed(seed))
    low_rank = x @ torch.randn(c, 2, generator=torch.Generator().manual_seed(5)) @ torch.ones(2, c)
    padded = torch.cat([x[:, : c - 4], torch.zeros(n, 4)], dim=1)
    return torch.stack([x + 1000, low_rank, padded], dim=1), labels


@pytest.fixture
def parts():
    return [feature_sets(n, seed) for seed, n in enumerate((80, 40, 60))]


@pytest.mark.parametrize("together", [3, 1])
def test_each_set_has_the_probe_that_it_has_alone(parts, together, monkeypatch):
    monkeypatch.setattr(ridge, "MOMENTS_BYTES", together * 8 * 9 * 9)
    probes = fit_ridge_grid(*parts, num_classes=3)
    (x, y), (held, held_y), (test, test_y) = parts
    for index in range(3):
        scores = []
        for penalty in RIDGE_PENALTIES:
            alone = _RidgePath(x[:, index], y, 3).scores(held[:, index], penalty).argmax(dim=1)
            scores.append((float((alone == held_y).double().mean()), penalty))
        accuracy, penalty = max(scores)
        assert float(probes.penalty[index]) == penalty
        assert float(probes.held_out[index]) == pytest.approx(accuracy)
        whole = _RidgePath(torch.cat([x, held])[:, index], torch.cat([y, held_y]), 3).scores(test[:, index], penalty)
        weight, bias = probes.folded(index)
        torch.testing.assert_close(
            (test[:, index].double() @ probes.weight[index] + probes.bias[index]),
            whole,
            rtol=1e-6,
            atol=1e-6,
        )
        assert (weight.shape, bias.shape) == ((3, 9), (3,))
        hits = (whole.argmax(dim=1) == test_y).double().mean()
        assert torch.equal(probes.predict(test)[:, index], whole.argmax(dim=1))
        assert float(probes.test[index]) == pytest.approx(float(hits))


def test_the_test_set_chooses_nothing(parts):
    other = (parts[2][0], parts[2][1].flip(0))
    first, second = (fit_ridge_grid(*parts[:2], test, num_classes=3) for test in (parts[2], other))
    assert torch.equal(first.penalty, second.penalty) and torch.equal(first.weight, second.weight)
    assert not torch.equal(first.test, second.test)


def test_what_is_not_possible_is_refused(parts):
    with pytest.raises(ValueError, match=r"penalties=\(0\.0,\)"):
        fit_ridge_grid(*parts, num_classes=3, penalties=(0.0,))
    empty = (parts[1][0][:0], parts[1][1][:0])
    with pytest.raises(ValueError, match="held has 0 features and 0 classes"):
        fit_ridge_grid(parts[0], empty, parts[2], num_classes=3)


@pytest.mark.parametrize("probe", ["ridge", "logistic"])
def test_between_equal_accuracies_the_held_out_loss_chooses(probe):
    labels = torch.arange(120) % 3
    clear = torch.nn.functional.one_hot(labels, 3) + 0.05 * torch.randn(
        120, 3, generator=torch.Generator().manual_seed(0)
    )
    blurred = clear.clone()
    blurred[::2] = 0.6 * clear[::2] + 0.4 * clear[::2].mean(dim=1, keepdim=True)  # still apart, with smaller margins
    x = torch.stack([blurred, clear, 1 - clear.flip(1) ** 2], dim=1)
    part = (x[:60], labels[:60]), (x[60:90], labels[60:90]), (x[90:], labels[90:])
    probes = fit_probes(probe, *part, num_classes=3)
    assert probes.held_out.tolist() == [1.0, 1.0, 1.0]
    assert probes.best == int(probes.held_out_loss.argmin())
    assert probe == "logistic" or probes.best == 1  # a logistic loss goes to zero wherever classes are apart
