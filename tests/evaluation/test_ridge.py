import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge, RidgeClassifier
from torch.nn import functional as F

from ldae.evaluation.ridge import (
    EPS,
    RIDGE_PENALTIES,
    _RidgePath,
    draw_shots,
    few_shot_ridge,
    fit_ridge,
    ridge_accuracy,
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
    probe = fit_ridge(x, y, num_classes=4, penalty=penalty)
    expected = reference.predict(standardised(test, x).numpy())
    np.testing.assert_allclose(probe.scores(test).numpy(), expected, atol=1e-8)
    # Targets of -1 and 1 in place of 0 and 1 double the scores' differences and choose the same class.
    classifier = RidgeClassifier(alpha=penalty * n, solver="svd").fit(z, y.numpy())
    assert (classifier.predict(standardised(test, x).numpy()) == probe.predict(test).numpy()).all()


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
    scores = fit_ridge(x, y, num_classes=3, penalty=0.1).scores(x)
    torch.testing.assert_close(fit_ridge(padded, y, num_classes=3, penalty=0.1).scores(padded), scores)


def test_the_penalty_is_chosen_without_the_test_set():
    x, y = blobs(120, 40, 4, spread=0.5)
    test, test_y = blobs(60, 40, 4, seed=1, spread=0.5)
    result = ridge_accuracy(x, y, test, test_y)
    shuffled = ridge_accuracy(x, y, test.flip(0) * 3, test_y[torch.randperm(60)])
    assert (result.penalty, result.holdout_accuracy) == (shuffled.penalty, shuffled.holdout_accuracy)
    assert result.penalty in RIDGE_PENALTIES
    assert result.accuracy > 0.5
    expected = fit_ridge(x, y, num_classes=4, penalty=result.penalty).predict(test) == test_y
    assert result.accuracy == pytest.approx(expected.double().mean().item())
    assert result.holdout_accuracy * 12 == pytest.approx(round(result.holdout_accuracy * 12))  # of a tenth, 12 images


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
    with pytest.raises(ValueError, match=r"penalty=0\.0"):
        fit_ridge(x, y, num_classes=3, penalty=0.0)
    with pytest.raises(ValueError, match=r"holdout=0\.001"):
        ridge_accuracy(x, y, x, y, holdout=0.001)
    with pytest.raises(ValueError, match=r"\(n, C\)"):
        fit_ridge(x[:, 0], y, num_classes=3, penalty=1.0)
