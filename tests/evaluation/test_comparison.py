from dataclasses import replace

import pytest
import torch

from ldae import DDAEModel, LDAEConfig, LDAEForPreTraining
from ldae.data import DataConfig, iterate_once, open_probe_images
from ldae.evaluation.comparison import FEW_SHOT, compare_baselines
from ldae.evaluation.encoder import PixelEncoder
from ldae.evaluation.features import extract_features
from ldae.evaluation.linear_probe import ProbeSettings
from ldae.evaluation.probing import probe_features
from ldae.evaluation.ridge import few_shot_ridge
from ldae.evaluation.untrained import untrained_like

from ..models.small_diffusers import small_unet


@pytest.fixture(scope="module")
def inputs():
    torch.manual_seed(0)
    model = LDAEForPreTraining(LDAEConfig.from_size("nano", image_size=16, patch_size=4, latent_dim=8)).eval()
    sources = open_probe_images(DataConfig("digits"))
    train, test = (list(iterate_once(source, image_size=16, batch_size=128, limit=600)) for source in sources)
    return model, train, test


NAMES = ["trained encoder", "untrained encoder", "mean PCA coefficients", "raw pixels"]


def test_few_shot_compares_all_on_the_same_draws(inputs):
    compared = compare_baselines(*inputs, FEW_SHOT, shots=3, draws=4)
    assert [c.name for c in compared] == NAMES
    assert compared == compare_baselines(*inputs, FEW_SHOT, shots=3, draws=4)
    by_name = {c.name: c for c in compared}
    assert by_name["raw pixels"].accuracy > by_name["mean PCA coefficients"].accuracy  # pooling loses where things are
    assert all(c.stderr is not None and c.protocol["labels_per_class"] == 3 for c in compared)
    alone = few_shot_ridge(
        *(
            part
            for batches in inputs[1:]
            for part in (extract_features(PixelEncoder(16), batches).flat[:, 0], labels(batches))
        ),
        shots=3,
        draws=4,
    )
    assert by_name["raw pixels"].accuracy == pytest.approx(sum(alone) / 4)


def test_the_chosen_block_of_a_ddae_and_of_its_untrained_twin_is_compared(inputs):
    ddae = DDAEModel.from_diffusers(small_unet(), "last")
    tap = "up_blocks.0.resnets.0"
    choice = {"layer": tap, "timestep": 21, "noisy": True}
    compared = compare_baselines(ddae, *inputs[1:], "ridge", **choice)
    assert [c.name for c in compared] == ["trained encoder", "untrained encoder", "raw pixels"]
    options = {"layers": [tap], "timesteps": [21], "noisy": True}
    for model, found in zip((ddae, untrained_like(ddae, seed=0)), compared, strict=False):
        train, test = (extract_features(model, part, **options) for part in inputs[1:])
        assert found.accuracy == probe_features("ridge", train, test).score(0)[0]
    assert compared[0].accuracy != compared[1].accuracy
    assert [c.noisy for c in compared] == [True, True, False]  # raw pixels have no noise of the model's


def labels(batches):
    return torch.cat([batch.labels for batch in batches])


def test_linear_probes_learn_from_each_kind_of_features(inputs):
    compared = compare_baselines(*inputs)
    assert [c.name for c in compared] == NAMES
    assert {c.name: c.accuracy for c in compared}["raw pixels"] > 0.85
    assert all(c.protocol["name"] == "logistic" and c.protocol["converged"] and c.stderr is None for c in compared)
    ridge = compare_baselines(*inputs, "ridge")
    assert [c.protocol["name"] for c in ridge] == ["ridge"] * 4 and all(c.protocol["holdout"] == 0.1 for c in ridge)
    assert [c.accuracy for c in ridge] != [c.accuracy for c in compared]
    with pytest.raises(ValueError, match="probe='svm' must be one of logistic, adam, ridge"):
        compare_baselines(*inputs, "svm")


def test_adams_probes_are_compared_by_name(inputs):
    settings = ProbeSettings(epochs=10, lr_multipliers=(10.0, 100.0), seeds=(0, 1), max_lr_extensions=1)
    compared = compare_baselines(*inputs, "adam", settings=settings)
    assert {c.name: c.accuracy for c in compared}["raw pixels"] > 0.8
    rates = replace(settings, lr_multipliers=(1.0, 10.0, 100.0, 1000.0)).learning_rates(540)
    assert all(c.protocol["learning_rate"] in rates and c.stderr is not None for c in compared)
    assert any(c.protocol["learning_rate"] == rates[-1] for c in compared)  # beyond the grid that was given
    assert all(c.protocol["learning_rate_at_edge"] == (c.protocol["learning_rate"] == rates[-1]) for c in compared)
