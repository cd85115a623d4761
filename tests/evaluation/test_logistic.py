"""Logistic probes: scikit-learn's optimum, on ill-conditioned features too, and rankings that Adam reverses."""

import warnings

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch.nn import functional as F

from ldae.evaluation.feature_store import FeatureStore, Rows
from ldae.evaluation.linear_probe import ProbeSettings, train_adam_probes
from ldae.evaluation.logistic import fit_logistic_grid
from ldae.evaluation.ridge import EPS


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ill_conditioned(hidden, weakest, seed=3):
    """Rotate features `(n, C)` after scaling them from 1 down to `weakest`: a few directions hold all variance."""
    c = hidden.shape[1]
    rotation = torch.linalg.qr(random(c, c, seed=seed))[0]
    return (hidden * torch.logspace(0, torch.tensor(weakest).log10().item(), c)) @ rotation


def classes_of(hidden, classes, noise, seed):
    """Draw classes `(n,)` that depend linearly on all directions of `hidden` alike."""
    c = hidden.shape[1]
    scores = hidden @ random(c, classes, seed=4) / c**0.5
    return (scores + noise * random(len(hidden), classes, seed=seed)).argmax(dim=1)


def split(x, y, fitted, held):
    return (
        (x[:fitted], y[:fitted]),
        (x[fitted : fitted + held], y[fitted : fitted + held]),
        (x[fitted + held :], y[fitted + held :]),
    )


@pytest.fixture(scope="module")
def parts():
    """Three feature sets of the same images: ill-conditioned, the same far from zero, and well-conditioned."""
    hidden = random(900, 24, seed=0)
    y = classes_of(hidden, 5, 0.4, seed=1)
    weak = ill_conditioned(hidden, 1e-3)
    return split(torch.stack([weak, 10 * weak + 30, hidden], dim=1), y, 500, 100)


def loss_of(weight, bias, x, y, penalty):
    """Compute the objective at weights `(C, K)` of raw features `(n, C)`."""
    std = (x.var(dim=0, unbiased=False) + EPS).sqrt()
    cross_entropy = F.cross_entropy(x @ weight + bias, y)
    return float(cross_entropy + 0.5 * penalty * (weight * std[:, None]).square().sum())


@pytest.mark.parametrize("penalty", [1e-6, 1e-4, 1e-2, 1.0])
def test_the_loss_is_that_of_scikit_learn(parts, penalty):
    probes = fit_logistic_grid(*parts, num_classes=5, penalties=[penalty])
    assert probes.converged.all() and (probes.iterations > 0).all()
    x = torch.cat([part[0] for part in parts[:2]]).double()
    y = torch.cat([part[1] for part in parts[:2]])
    for index in range(x.shape[1]):
        one = x[:, index]
        mean, std = one.mean(dim=0), (one.var(dim=0, unbiased=False) + EPS).sqrt()
        peer = LogisticRegression(C=1 / (len(one) * penalty), solver="newton-cg", tol=1e-10, max_iter=10_000)
        peer.fit(((one - mean) / std).numpy(), y.numpy())
        weight = torch.tensor(peer.coef_).T / std[:, None]
        optimum = loss_of(weight, torch.tensor(peer.intercept_) - mean @ weight, one, y, penalty)
        found = loss_of(probes.weight[index], probes.bias[index], one, y, penalty)
        assert -1e-7 < found - optimum < 1e-5
        assert float(probes.loss[index]) == pytest.approx(found, abs=1e-6)


def test_the_rankings_that_adam_reverses():
    """
    Trained features hold more, in directions of little variance; untrained ones hold less, in plain sight. Adam, at
    the best of its rates up to 100 times the paper's, ranks the untrained ones first; the optimum ranks the trained
    ones first.
    """
    hidden = random(5000, 64, seed=10)
    y = classes_of(hidden, 10, 0.3, seed=11)
    trained = ill_conditioned(hidden, 1e-4)
    untrained = hidden + 0.8 * random(5000, 64, seed=12)
    eigenvalues = torch.linalg.eigvalsh(torch.corrcoef(trained.T)).clamp(min=0)
    shares = eigenvalues / eigenvalues.sum()  # the effective rank is the exponential of their entropy
    assert 2 < float(torch.special.entr(shares).sum().exp()) < 12
    fitted, held, test = split(torch.stack([trained, untrained], dim=1), y, 3600, 400)

    settings = ProbeSettings(epochs=30, lr_multipliers=(1.0, 10.0, 100.0), seeds=(0,))
    adam = train_adam_probes(lambda epoch: fitted[0], fitted[1], held, test, num_classes=10, settings=settings)
    assert adam.rates == (2, 2)  # the largest rate: it had not gone far enough
    assert adam.score(1)[0] > adam.score(0)[0] + 0.08

    converged = fit_logistic_grid(fitted, held, test, num_classes=10)
    assert converged.converged.all()
    assert converged.test[0] > converged.test[1] + 0.1 and converged.held_out[0] > converged.held_out[1] + 0.1
    assert converged.best == 0
    assert converged.test[0] > adam.score(0)[0] + 0.2


@pytest.mark.parametrize("memory", [0, 600 * 24 * 4, 10**9])
def test_each_set_has_the_probe_that_it_has_alone(parts, memory):
    stored = []
    for x, y in parts:
        store = FeatureStore(memory=0)
        store.append(x)
        stored.append((Rows(store, torch.arange(len(x))), y))
    together = fit_logistic_grid(*stored, num_classes=5, memory=memory, tolerance=1e-5)
    for index in range(3):
        one = [(x[:, index : index + 1], y) for x, y in parts]
        alone = fit_logistic_grid(*one, num_classes=5, tolerance=1e-5)
        assert together.penalty[index] == alone.penalty[0]
        torch.testing.assert_close(together.loss[index], alone.loss[0], rtol=0, atol=1e-6)
        torch.testing.assert_close(together.held_out[index], alone.held_out[0], rtol=0, atol=0.011)


def test_the_penalty_is_the_held_out_examples_choice_and_the_test_set_chooses_nothing(parts):
    fitted, held, test = parts
    probes = fit_logistic_grid(*parts, num_classes=5, penalties=[1e-6, 1e-3, 1e-1, 10.0])
    accuracies = torch.stack(
        [fit_logistic_grid(*parts, num_classes=5, penalties=[p]).held_out for p in (1e-6, 1e-3, 1e-1, 10.0)]
    )
    assert (probes.held_out >= accuracies.amax(dim=0) - 0.011).all()
    assert accuracies.amin(dim=0)[0] < probes.held_out[0] - 0.05  # there was something to choose
    other = fit_logistic_grid(
        fitted, held, (test[0], test[1].flip(0)), num_classes=5, penalties=[1e-6, 1e-3, 1e-1, 10.0]
    )
    assert torch.equal(other.penalty, probes.penalty) and torch.equal(other.weight, probes.weight)
    assert not torch.equal(other.test, probes.test)


def test_equally_good_penalties_go_to_the_largest():
    y = torch.arange(60) % 2
    x = (10.0 * y[:, None, None] - 5) + 0.1 * random(60, 1, 3, seed=0)
    probes = fit_logistic_grid((x, y), (x, y), (x, y), num_classes=2, penalties=[1e-3, 1e-2, 1e-1])
    assert float(probes.held_out[0]) == 1 and float(probes.penalty[0]) == 0.1


def test_a_folded_probe_is_a_linear_layer_of_raw_features(parts):
    probes = fit_logistic_grid(*parts, num_classes=5)
    x, y = parts[2]
    for index in range(3):
        weight, bias = probes.folded(index)
        assert (weight.shape, bias.shape, weight.dtype) == ((5, 24), (5,), torch.float32)
        logits = x[:, index].double() @ probes.weight[index] + probes.bias[index]
        torch.testing.assert_close(F.linear(x[:, index], weight, bias).double(), logits, rtol=1e-2, atol=2e-2)
        assert float(probes.test[index]) == pytest.approx(float((logits.argmax(dim=1) == y).double().mean()))


def test_constant_features_and_classes_that_are_missing(parts):
    (x, y), (held, held_y), test = parts
    x, held, scored = (torch.cat([part, torch.full_like(part, 7.0)[..., :2]], dim=2) for part in (x, held, test[0]))
    kept = held_y != 2  # a class that is missing from the held-out examples
    probes = fit_logistic_grid((x, y), (held[kept], held_y[kept]), (scored, test[1]), num_classes=7)
    assert probes.converged.all() and probes.weight.isfinite().all() and probes.bias.isfinite().all()
    assert (probes.weight[:, 24:].abs() * EPS**0.5 < 1e-3).all()
    predictions = (scored[:, 0].double() @ probes.weight[0] + probes.bias[0]).argmax(dim=1)
    assert set(predictions.tolist()) == {0, 1, 2, 3, 4}  # never 5 or 6, of which there is no example

    only_held = y != 3  # a class of held-out examples alone is learnt in the last fit
    probes = fit_logistic_grid((x[only_held], y[only_held]), (held, held_y), (scored, test[1]), num_classes=5)
    assert probes.converged.all()
    assert 3 in (scored[:, 0].double() @ probes.weight[0] + probes.bias[0]).argmax(dim=1)

    one_class = torch.zeros_like(y)
    probes = fit_logistic_grid((x, one_class), (x, one_class), (x, one_class), num_classes=2)
    assert probes.converged.all() and (probes.test == 1).all()


def test_a_probe_that_has_not_converged_says_so(parts):
    with pytest.warns(UserWarning, match=r"feature sets weak, far, plain have not converged .* max_iterations=1"):
        probes = fit_logistic_grid(*parts, num_classes=5, names=["weak", "far", "plain"], max_iterations=1)
    assert not probes.converged.any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_logistic_grid(*parts, num_classes=5)


@pytest.mark.parametrize(("part", "name"), [(0, "fitted"), (1, "held"), (2, "test")])
def test_features_that_are_not_finite_are_refused(parts, part, name):
    broken = list(parts)
    broken[part] = (broken[part][0].clone(), broken[part][1])
    broken[part][0][4, 1, 3] = float("nan")
    with pytest.raises(ValueError, match=rf"the {name} features of feature set block 2 must be finite; 1 of"):
        fit_logistic_grid(*broken, num_classes=5, names=["block 1", "block 2", "block 3"])


def test_penalties_and_parts_are_checked(parts):
    with pytest.raises(ValueError, match=r"penalties=\(0\.0,\) must be"):
        fit_logistic_grid(*parts, num_classes=5, penalties=[0.0])
    with pytest.raises(ValueError, match="held has 100 features and 0 classes"):
        fit_logistic_grid(parts[0], (parts[1][0], parts[1][1][:0]), parts[2], num_classes=5)
