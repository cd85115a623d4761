import pytest
import torch
from torch.nn import functional as F
from transformers import AutoImageProcessor, AutoModelForImageClassification

from ldae.data import Batch, iterate_once, prepare_images
from ldae.evaluation.classifier import build_classifier, save_classifier
from ldae.evaluation.features import extract_features
from ldae.evaluation.images import fixed_subset
from ldae.evaluation.linear_probe import ProbeSettings
from ldae.evaluation.metrics import accuracy
from ldae.evaluation.probing import run_probe
from ldae.evaluation.protocol import Protocol, split_holdout
from ldae.evaluation.ridge import _RidgePath


@pytest.fixture(scope="session")
def few(digits):
    return fixed_subset(digits[0], 300, 0), fixed_subset(digits[1], 120, 0)


def protocol(name, **options):
    settings = ProbeSettings(epochs=6, base_lr=0.1, lr_multipliers=(0.1, 1.0), seeds=(0, 1))
    defaults = {"layers": (1, 2), "timesteps": (10,), "crop_scale": (0.7, 1.0), "settings": settings}
    return Protocol(name=name, **(defaults | options))


@pytest.mark.parametrize("name", ["paper", "cached"])
@pytest.mark.parametrize("noisy", [False, True])
def test_a_protocol_end_to_end(model, few, name, noisy):
    epochs = []
    result = run_probe(model, *few, protocol(name, noisy=noisy, horizontal_flip=False), on_epoch=epochs.append)
    assert epochs == [1, 2, 3, 4, 5, 6]
    assert result.columns == [(1, 10), (2, 10)]
    assert result.probes.test.shape == (2, 2, 2)
    assert (result.num_train, result.num_test, result.holdout) == (270, 120, 0.1)
    value, stderr = result.probes.score(result.best)
    assert value > 0.15 and stderr >= 0  # chance is a tenth
    details = result.describe(0)
    assert (details["preset"], details["layer"], details["input"]) == (name, 1, "noisy" if noisy else "clean")
    again = run_probe(model, *few, protocol(name, noisy=noisy, horizontal_flip=False))
    assert torch.equal(again.probes.test, result.probes.test)


def test_one_probe_trains_on_all_images(model, few):
    settings = ProbeSettings(epochs=2, lr_multipliers=(1.0,), seeds=(0,))
    result = run_probe(model, *few, Protocol(name="cached", settings=settings))
    assert (result.num_train, result.holdout, result.probes.held_out) == (300, 0.0, None)
    assert result.columns == [(2, 10)]
    assert result.probes.score(0)[1] is None


def test_the_paper_protocol_sees_other_crops_in_each_epoch(model, few, monkeypatch):
    seen = []

    def spy(epoch_features, labels, **options):
        seen.extend(epoch_features(epoch) for epoch in (0, 1, 0))
        raise InterruptedError

    monkeypatch.setattr("ldae.evaluation.linear_probe.train_linear_probes", spy)
    for name in ("paper", "cached"):
        with pytest.raises(InterruptedError):
            run_probe(model, *few, protocol(name))
    seen = [features[torch.arange(270)] for features in seen]
    paper, cached = seen[:3], seen[3:]
    assert paper[0].shape == (270, 2, 32)
    assert torch.equal(paper[0], paper[2])
    assert (paper[0] != paper[1]).any(dim=(1, 2)).all()
    changed = (cached[0] != cached[1]).any(dim=(1, 2)).double().mean()
    assert 0.4 < changed < 0.6  # a coin for the image or its mirror image
    mirrored = next(iterate_once(few[0], image_size=16, batch_size=300))
    mirrored = Batch(mirrored.images.flip(-1), mirrored.positions, mirrored.labels)
    plain = extract_features(model, iterate_once(few[0], image_size=16, batch_size=300), layers=[1, 2]).flat
    flipped = extract_features(model, [mirrored], layers=[1, 2]).flat
    for features in cached:
        for row in features[:5]:
            candidates = torch.stack([plain, flipped]).flatten(0, 1)
            assert (candidates - row).abs().amax(dim=(1, 2)).min() < 1e-5


def test_padded_crops_shift_images_and_are_described(model, few):
    settings = ProbeSettings(epochs=1, batch_size=128, base_lr=2e-3, lr_multipliers=(1.0,), seeds=(0,))
    result = run_probe(model, *few, protocol("paper", crop="padded", settings=settings))
    details = result.describe(0)
    assert details["augmentation"] == ["random_crop", "horizontal_flip"] and details["crop_padding"] == 4
    assert (details["learning_rate"], details["batch_size"], details["schedule"]) == (1e-3, 128, "cosine")


@pytest.mark.parametrize("name", ["paper", "cached"])
def test_features_in_a_file_give_the_same_probes(model, few, name):
    kept, written = (run_probe(model, *few, protocol(name), memory=memory) for memory in (2**30, 0))
    assert torch.equal(kept.probes.test, written.probes.test)
    assert torch.equal(kept.probes.probes.weight, written.probes.probes.weight)


def test_ridge_probes_are_those_of_the_plain_closed_form(model, few):
    choice = protocol("cached", timesteps=(10, 400))
    result = run_probe(model, *few, choice, "ridge", memory=0)
    assert result.columns == [(1, 10), (1, 400), (2, 10), (2, 400)] and result.num_train == 300
    batches = [list(iterate_once(source, image_size=16, batch_size=300)) for source in few]
    mirrored = [Batch(batch.images.flip(-1), batch.positions, batch.labels) for batch in batches[0]]
    options = {"layers": [2], "timesteps": [400]}
    plain, flipped, test = (extract_features(model, part, **options) for part in (batches[0], mirrored, batches[1]))
    fitted, _ = split_holdout(300)
    x = torch.cat([plain.flat[:, 0], flipped.flat[fitted, 0]])
    y = torch.cat([plain.classes, plain.classes[fitted]])
    details = result.describe(3)
    expected = _RidgePath(x, y, 10).scores(test.flat[:, 0], details["penalty"]).argmax(dim=1)
    assert result.probes.score(3) == (accuracy(expected, test.classes), None)
    assert (details["name"], details["augmentation"], details["holdout"]) == ("ridge", ["horizontal_flip"], 0.1)
    with pytest.raises(ValueError, match="protocol='paper' must be cached with ridge probes"):
        run_probe(model, *few, protocol("paper"), "ridge")


def test_logistic_probes_have_the_result_of_ridge_probes(model, few):
    result = run_probe(model, *few, protocol("cached", timesteps=(10, 400)), "logistic")
    ridge = run_probe(model, *few, protocol("cached", timesteps=(10, 400)), "ridge")
    assert (result.columns, result.num_train, result.num_test) == (ridge.columns, ridge.num_train, ridge.num_test)
    assert set(ridge.describe(1)) < set(result.describe(1))
    details = result.describe(1)
    assert (details["name"], details["layer"], details["timestep"], details["holdout"]) == ("logistic", 1, 400, 0.1)
    assert details["converged"] is True and details["iterations"] > 0 and details["standardised"] is True
    assert details["optimizer"] == "Newton-CG" and details["penalty"] in details["penalties_tried"]
    scores = [result.probes.held_out_score(index) for index in range(4)]
    assert scores[result.best] == max(scores) > 0.15
    # The folded probe's predictions score what the result says.
    test = extract_features(
        model, iterate_once(few[1], image_size=16, batch_size=300), layers=[1, 2], timesteps=[10, 400]
    )
    for index in range(4):
        logits = F.linear(test.flat[:, index], *result.probes.folded(index))
        assert abs(result.probes.score(index)[0] - accuracy(logits.argmax(dim=1), test.classes)) < 0.01
    with pytest.raises(ValueError, match="protocol='paper' must be cached with logistic probes"):
        run_probe(model, *few, protocol("paper"), "logistic")


def test_the_grid_of_rates_grows_until_the_chosen_ones_lie_inside(model, few):
    small = ProbeSettings(epochs=6, base_lr=1e-4, lr_multipliers=(1.0, 10.0), seeds=(0,), max_lr_extensions=6)
    result = run_probe(model, *few, protocol("cached", settings=small))
    details = [result.describe(index) for index in range(2)]
    assert result.protocol.settings.lr_multipliers[:4] == (1.0, 10.0, 100.0, 1000.0)
    assert not any(d["learning_rate_at_edge"] for d in details)
    tried = details[0]["learning_rates_tried"]
    assert all(tried[0] < d["learning_rate"] < tried[-1] for d in details)
    # The same as if all rates had been in the grid at first.
    at_once = ProbeSettings(
        epochs=6, base_lr=1e-4, lr_multipliers=result.protocol.settings.lr_multipliers, seeds=(0,), max_lr_extensions=0
    )
    direct = run_probe(model, *few, protocol("cached", settings=at_once))
    assert torch.equal(direct.probes.test, result.probes.test)
    assert direct.probes.rates == result.probes.rates

    limited = ProbeSettings(epochs=1, base_lr=1e-7, lr_multipliers=(1.0, 10.0), seeds=(0,), max_lr_extensions=1)
    with pytest.warns(UserWarning, match="at the edge of its grid"):
        result = run_probe(model, *few, protocol("cached", settings=limited))
    assert any(result.describe(index)["learning_rate_at_edge"] for index in range(2))
    assert len(result.protocol.settings.lr_multipliers) in (3, 4)


def test_a_saved_classifier_has_the_probes_logits(model, few, checkpoint, tmp_path):
    result = run_probe(model, *few, protocol("cached", layers=(3,), timesteps=(40,)))
    probes, rate = result.probes.probes, result.probes.rates[0]
    weight, bias = result.probes.folded(0)
    names = [f"digit {index}" for index in range(10)]
    save_classifier(
        build_classifier(checkpoint, weight, bias, layer=3, timestep=40, class_names=names), tmp_path / "probe"
    )

    classifier = AutoModelForImageClassification.from_pretrained(tmp_path / "probe")
    assert len(classifier.ldae.layers) == 3 and classifier.config.feature_timestep == 40
    assert classifier.config.id2label[7] == "digit 7" and classifier.config.label2id["digit 7"] == 7
    batches = list(iterate_once(few[1], image_size=16, batch_size=200))
    pixels = prepare_images(batches[0].images, batches[0].positions, 0, image_size=16)
    with torch.no_grad():
        logits = classifier(pixels).logits
    features = extract_features(model, batches, layers=[3], timesteps=[40]).flat[:, 0]
    x = F.batch_norm(features, probes.mean[0, 0], probes.var[0, 0], eps=1e-6)
    expected = x @ probes.weight[0, 0, rate] + probes.bias[0, 0, rate]
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(logits.argmax(dim=1), probes.predict(features[:, None])[0, 0, rate])

    processor = AutoImageProcessor.from_pretrained(tmp_path / "probe")
    images = [image.permute(1, 2, 0).numpy() for image in batches[0].images[:4]]
    torch.testing.assert_close(processor(images, return_tensors="pt")["pixel_values"], pixels[:4])


def test_a_classifier_of_the_wrong_size_is_refused(checkpoint):
    with pytest.raises(ValueError, match=r"weight \(3, 5\).*2 classes"):
        build_classifier(checkpoint, torch.zeros(3, 5), torch.zeros(3), layer=2, timestep=10, class_names=["a", "b"])


@pytest.mark.parametrize(
    "options, named",
    [
        ({"name": "mae"}, "protocol='mae'"),
        ({"crop_scale": (0, 1)}, "crop_scale"),
        ({"crop": "corner"}, "crop='corner'"),
        ({"crop_padding": 0}, "crop_padding=0"),
    ],
)
def test_impossible_protocols_are_refused(options, named):
    with pytest.raises(ValueError, match=named):
        Protocol(**options)
