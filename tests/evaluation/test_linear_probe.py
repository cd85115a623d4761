import pytest
import torch
from torch import nn

from ldae.evaluation.linear_probe import BN_EPS, ProbeSettings, score_probes, train_linear_probes


def blobs(n, num_sets, c, num_classes, seed=0, spread=1.0):
    """Feature sets of which each is less noisy than the one before. (n, F, C)"""
    centres = torch.randn(num_classes, num_sets, c, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(n) % num_classes
    noise = torch.randn(n, num_sets, c, generator=torch.Generator().manual_seed(seed))
    return 3 + spread * centres[labels] + noise * torch.linspace(4, 1, num_sets)[:, None], labels


def train(x, y, settings):
    return train_linear_probes(lambda epoch: x, y, num_classes=int(y.max()) + 1, settings=settings)


def test_batched_probes_equal_probes_trained_one_by_one():
    x, y = blobs(70, 3, 6, 4)
    together = ProbeSettings(epochs=4, batch_size=32, base_lr=0.05, lr_multipliers=(1.0, 5.0), seeds=(3, 8))
    probes = train(x, y, together)
    assert probes.weight.shape == (2, 3, 2, 6, 4)
    for s, seed in enumerate(together.seeds):
        for f in range(3):
            for r, multiplier in enumerate(together.lr_multipliers):
                alone = ProbeSettings(
                    epochs=4, batch_size=32, base_lr=0.05, lr_multipliers=(multiplier,), seeds=(seed,)
                )
                single = train(x[:, f : f + 1], y, alone)
                for name, ours in (("weight", probes.weight[s, f, r]), ("bias", probes.bias[s, f, r])):
                    torch.testing.assert_close(ours, getattr(single, name)[0, 0, 0], rtol=1e-4, atol=1e-5)
                torch.testing.assert_close(probes.var[s, f], single.var[0, 0])


def test_equals_torchs_modules_and_optimiser():
    x, y = blobs(48, 1, 5, 3)
    settings = ProbeSettings(epochs=3, batch_size=16, base_lr=0.02, lr_multipliers=(2.0,), seeds=(0,))
    probes = train(x, y, settings)

    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.BatchNorm1d(5, affine=False, eps=BN_EPS, momentum=None), nn.Linear(5, 3))
    with torch.no_grad():
        model[1].weight.copy_(0.01 * torch.randn(5, 3, generator=generator).T)
        model[1].bias.zero_()
    peak = 0.02 * 16 / 256 * 2.0
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=9)
    for _ in range(3):
        order = torch.randperm(48, generator=generator)
        for index in order.split(16):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[index, 0]), y[index]).backward()
            optimizer.step()
            schedule.step()
    model.eval()
    torch.testing.assert_close(probes.weight[0, 0, 0].T, model[1].weight.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(probes.var[0, 0], model[0].running_var)
    # Folded, it is one linear layer of raw features.
    weight, bias = probes.folded(0, 0, 0)
    torch.testing.assert_close(
        nn.functional.linear(x[:, 0], weight, bias), model(x[:, 0]).detach(), rtol=1e-4, atol=1e-4
    )
    assert torch.equal(probes.predict(x)[0, 0, 0], model(x[:, 0]).argmax(dim=1))


def test_without_batch_norm_it_is_a_plain_linear_layer():
    x, y = blobs(48, 2, 5, 3)
    settings = ProbeSettings(
        epochs=3, batch_size=16, base_lr=0.02, lr_multipliers=(2.0,), seeds=(0,), batch_norm=False
    )
    probes = train(x, y, settings)
    generator = torch.Generator().manual_seed(0)
    initial = 0.01 * torch.randn(5, 3, generator=generator)
    orders = [torch.randperm(48, generator=generator) for _ in range(3)]
    (peak,) = settings.learning_rates(48)
    for index in range(2):
        layer = nn.Linear(5, 3)
        with torch.no_grad():
            layer.weight.copy_(initial.T)
            layer.bias.zero_()
        optimizer = torch.optim.Adam(layer.parameters(), lr=peak)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 9)
        for rows in (part for order in orders for part in order.tensor_split(3)):
            optimizer.zero_grad()
            nn.functional.cross_entropy(layer(x[rows, index]), y[rows]).backward()
            optimizer.step()
            schedule.step()
        weight, bias = probes.folded(0, index, 0)
        torch.testing.assert_close(weight, layer.weight.detach(), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(bias, layer.bias.detach(), rtol=1e-4, atol=1e-5)
        assert torch.equal(probes.predict(x)[0, index, 0], layer(x[:, index]).argmax(dim=1))


def test_the_same_seed_gives_the_same_probe_and_another_one_another():
    x, y = blobs(40, 1, 4, 2)
    settings = ProbeSettings(epochs=2, batch_size=16, seeds=(0, 1))
    first, second = train(x, y, settings), train(x, y, settings)
    assert torch.equal(first.weight, second.weight)
    assert not torch.equal(first.weight[0], first.weight[1])


def test_features_may_change_with_the_epoch():
    x, y = blobs(40, 1, 4, 2)
    seen = []

    def epoch_features(epoch):
        seen.append(epoch)
        return x + epoch

    train_linear_probes(epoch_features, y, num_classes=2, settings=ProbeSettings(epochs=3, seeds=(0,)))
    assert seen == [0, 1, 2]


def test_the_choice_does_not_see_the_test_labels():
    x, y = blobs(160, 3, 6, 4)
    held, held_y = blobs(80, 3, 6, 4, seed=1)
    test, test_y = blobs(80, 3, 6, 4, seed=2)
    settings = ProbeSettings(epochs=20, base_lr=0.01, lr_multipliers=(1e-4, 1.0), seeds=(0, 1))
    probes = train(x, y, settings)
    found = score_probes(probes, settings, (held, held_y), (test, test_y), 160)
    shuffled = score_probes(probes, settings, (held, held_y), (test, test_y[torch.randperm(80)]), 160)
    assert (found.rates, found.best) == (shuffled.rates, shuffled.best)
    assert not torch.equal(found.test, shuffled.test)
    assert found.best == 2  # the least noisy set
    assert found.rates[2] == 1  # the learning rate that learns
    expected = (probes.predict(test) == test_y).double().mean(dim=-1)
    torch.testing.assert_close(found.test, expected)


@pytest.mark.parametrize(
    "n, batch, rate",
    [(1_281_167, 16384, 6.4e-3), (50_000, 781, 1e-4 * 781 / 256), (5_000, 256, 1e-4), (100, 100, 1e-4 * 100 / 256)],
)
def test_batch_and_learning_rate_rule(n, batch, rate):
    settings = ProbeSettings()
    assert settings.batch_size_for(n) == batch
    assert settings.learning_rates(n)[0] == pytest.approx(rate)


@pytest.mark.parametrize(
    "options, named",
    [
        ({"epochs": 0}, "epochs=0"),
        ({"seeds": ()}, "seeds"),
        ({"lr_multipliers": (1.0, 1.0)}, "lr_multipliers"),
        ({"lr_multipliers": (0.0, 1.0)}, "must be positive"),
    ],
)
def test_impossible_settings_are_refused(options, named):
    with pytest.raises(ValueError, match=named):
        ProbeSettings(**options)


def test_features_and_labels_must_fit():
    with pytest.raises(ValueError, match=r"\(n, F, C\) for n=4"):
        train_linear_probes(
            lambda _: torch.zeros(5, 1, 2), torch.zeros(4).long(), num_classes=2, settings=ProbeSettings()
        )
