"""Accuracy over the noise levels: heads on frozen features, classifiers on the same noisy images, and the verb."""

import pytest
import torch
from diffusers import DDPMScheduler

from ldae import DDAEConfig, DDAEForImageClassification, DDAEForPreTraining, DDAEModel
from ldae.cli import main
from ldae.data.image_processor import save_image_processor
from ldae.evaluation.features import extract_features
from ldae.evaluation.images import ImageSet, fixed_subset
from ldae.evaluation.linear_probe import ProbeSettings
from ldae.evaluation.noise_classification import (
    TEST_SEED,
    default_noise_levels,
    noise_to_signal,
    noisy_accuracy,
    probe_noise_levels,
)
from ldae.results import read_results
from tests.models.test_ddae_pretraining import UNET


@pytest.fixture(scope="module")
def sets(digits):
    train, test = digits
    return [
        ImageSet(fixed_subset(source, n, 0), image_size=16, batch_size=64) for source, n in ((train, 200), (test, 80))
    ]


@pytest.fixture(scope="module")
def ddae():
    torch.manual_seed(0)
    return DDAEForPreTraining(DDAEConfig(denoiser_config=UNET)).eval()


def test_heads_know_more_where_there_is_less_noise_and_choose_without_the_test_set(ddae, sets):
    settings = ProbeSettings(epochs=30, batch_size=32, base_lr=8.0, lr_multipliers=(1e-9, 1e-2), seeds=(0, 1))
    options = {"layer": ddae.config.feature_layer, "timesteps": (5, 999), "settings": settings, "draws": 2}
    heads = probe_noise_levels(ddae.ddae, *sets, **options)
    assert [len(heads.seed_scores(level)) for level in range(2)] == [2, 2] and heads.num_train == 180
    assert heads.score(0)[0] > 0.4 and heads.score(1)[0] < 0.3  # with hardly any noise, and with nothing else
    assert heads.describe(0)["learning_rate"] == pytest.approx(1e-2)  # of the two, the one that learns
    again = probe_noise_levels(ddae.ddae, *sets, **options)
    assert torch.equal(heads.test, again.test)
    with pytest.raises(ValueError, match="draws=0"):
        probe_noise_levels(ddae.ddae, *sets, **{**options, "draws": 0})


def test_a_classifier_and_heads_are_scored_on_the_same_noisy_images(sets):
    torch.manual_seed(1)
    classifier = DDAEForImageClassification(DDAEConfig(denoiser_config=UNET, num_labels=10))
    scores = noisy_accuracy(classifier, sets[1], (10, 300))
    assert classifier.training  # as it was before
    features = extract_features(classifier.ddae, sets[1].batches(), timesteps=(10, 300), noisy=True, seed=TEST_SEED)
    with torch.no_grad():
        predictions = classifier.classifier(features.values[:, 0]).argmax(dim=-1)  # (n, T)
    expected = (predictions == features.classes[:, None]).double().mean(dim=0)
    assert scores == pytest.approx(expected.tolist(), abs=1 / 80)
    assert len(set(scores)) == 2


def test_the_noise_of_a_level_is_named_as_its_schedule_has_it(ddae, model):
    products = DDPMScheduler().alphas_cumprod[[10, 300]]
    assert noise_to_signal(ddae.ddae, (10, 300)) == pytest.approx(
        ((1 - products) / products).sqrt().tolist(), rel=1e-4
    )
    edm = DDAEModel(DDAEConfig(denoiser_config=UNET, parametrization="edm"))
    assert noise_to_signal(edm, (0, 17)) == pytest.approx([0.002, 80], rel=1e-4)
    assert default_noise_levels(edm.config.num_train_timesteps) == (0, 1, 3, 5, 7, 9, 10, 14)
    as_ldae = noise_to_signal(model, (0, 999))
    assert as_ldae == pytest.approx([0, model.config.sigma_max], abs=1e-6)
    assert noise_to_signal(DDAEModel.from_diffusers(model), (0, 999)) == as_ldae


@pytest.mark.slow
def test_the_verb_compares_heads_and_trained_networks_and_resumes(ddae, tmp_path, capsys):
    ddae.save_pretrained(tmp_path)
    save_image_processor(tmp_path, ddae.config)
    options = "--dataset digits --num_workers 0 --timesteps 10,500 --images 128 --batch_size 32"
    before = sorted(tmp_path.rglob("*"))
    assert main(["noise_classification", str(tmp_path), *options.split(), "--finetune", "--dry_run"]) == 0
    assert sorted(tmp_path.rglob("*")) == before
    printed = capsys.readouterr().out
    assert printed.count("Dry run of noise classifier") == 2 and "The networks of all seeds train for" in printed

    assert main(["noise_classification", str(tmp_path), *options.split(), "--finetune", "--draws", "1"]) == 0
    results = read_results(tmp_path)
    kinds = list(dict.fromkeys(r["protocol"]["kind"] for r in results))
    assert len(kinds) == 4 and len(results) == 8
    assert {r["protocol"]["name"] for r in results} == {"noise_classification"} and {r["n"] for r in results} == {360}
    assert {r["checkpoint"] for r in results if "untrained" in r["protocol"]["kind"]} == {"untrained"}
    assert results[0]["checkpoint"] == "." and results[0]["protocol"]["images"] == 1293  # an epoch of what is fitted
    assert results[-1]["protocol"]["images"] == 128 and results[-1]["protocol"]["train_images"] == 1437
    assert (tmp_path / "pictures" / "noise_classification.png").is_file()
    printed = capsys.readouterr().out
    assert "4 steps" in printed and "trained from scratch" in printed and "noise/signal" in printed

    assert main(["noise_classification", str(tmp_path), *options.split(), "--draws", "1"]) == 0
    assert "4 steps" not in capsys.readouterr().out  # nothing is trained twice
    assert read_results(tmp_path) == results


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--images", "0"], "images=0 must be"),
        (["--learning_rate", "0"], "learning_rate=0"),
        (
            ["--layers", "mid_block.resnets.0,mid_block.resnets.1"],
            "must be one block here, such as mid_block.resnets.0",
        ),
        (
            ["--timesteps", "10,1000"],
            "timesteps=[10, 1000] must be one or more of the numbers from 0 to 999",
        ),
        (["--draws", "0"], "draws=0 must be"),
        (["--seeds", "0,0"], "seeds=(0, 0) must be"),
    ],
)
def test_the_verb_says_what_is_wrong(ddae, tmp_path, capsys, options, message):
    ddae.save_pretrained(tmp_path)
    assert main(["noise_classification", str(tmp_path), "--dataset", "digits", "--num_workers", "0", *options]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
