"""Ridge probes from second moments: those of the plain closed form, whatever the features' mean and rank."""

import pytest
import torch

from ldae.evaluation import ridge_grid
from ldae.evaluation.ridge import RIDGE_PENALTIES, fit_ridge
from ldae.evaluation.ridge_grid import fit_ridge_grid


def blobs(n, seed, c=9, classes=3):
    """Three feature sets (n, 3, C): far from zero, of low rank, and padded with zeros."""
    labels = torch.arange(n) % classes
    centres = torch.randn(classes, c, generator=torch.Generator().manual_seed(99))
    x = centres[labels] + 1.5 * torch.randn(n, c, generator=torch.Generator().manual_seed(seed))
    low_rank = x @ torch.randn(c, 2, generator=torch.Generator().manual_seed(5)) @ torch.ones(2, c)
    padded = torch.cat([x[:, : c - 4], torch.zeros(n, 4)], dim=1)
    return torch.stack([x + 1000, low_rank, padded], dim=1), labels


@pytest.fixture
def parts():
    return [blobs(n, seed) for seed, n in enumerate((80, 40, 60))]


@pytest.mark.parametrize("together", [3, 1])
def test_each_set_has_the_probe_that_it_has_alone(parts, together, monkeypatch):
    monkeypatch.setattr(ridge_grid, "MOMENTS_BYTES", together * 8 * 9 * 9)
    probes = fit_ridge_grid(*parts, num_classes=3)
    (x, y), (held, held_y), (test, test_y) = parts
    for index in range(3):
        scores = []
        for penalty in RIDGE_PENALTIES:
            alone = fit_ridge(x[:, index], y, num_classes=3, penalty=penalty)
            scores.append((float((alone.predict(held[:, index]) == held_y).double().mean()), penalty))
        accuracy, penalty = max(scores)
        assert float(probes.penalty[index]) == penalty
        assert float(probes.held_out[index]) == pytest.approx(accuracy)
        whole = fit_ridge(torch.cat([x, held])[:, index], torch.cat([y, held_y]), num_classes=3, penalty=penalty)
        weight, bias = probes.folded(index)
        torch.testing.assert_close(
            (test[:, index].double() @ probes.weight[index] + probes.bias[index]),
            whole.scores(test[:, index]),
            rtol=1e-6,
            atol=1e-6,
        )
        assert (weight.shape, bias.shape) == ((3, 9), (3,))
        hits = (whole.predict(test[:, index]) == test_y).double().mean()
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
