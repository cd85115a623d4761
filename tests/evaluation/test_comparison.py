import pytest
import torch

from ldae import LDAEConfig, LDAEForPreTraining
from ldae.data import DataConfig, iterate_once, open_probe_images
from ldae.evaluation.comparison import compare_few_shot, compare_linear
from ldae.evaluation.linear_probe import ProbeSettings


@pytest.fixture(scope="module")
def inputs():
    torch.manual_seed(0)
    model = LDAEForPreTraining(LDAEConfig.from_size("nano", image_size=16, patch_size=4, latent_dim=8)).eval()
    sources = open_probe_images(DataConfig("digits"))
    train, test = (list(iterate_once(source, image_size=16, batch_size=128, limit=600)) for source in sources)
    return model, train, test


NAMES = ["trained encoder", "untrained encoder", "mean PCA coefficients", "raw pixels"]


def test_few_shot_compares_all_on_the_same_draws(inputs):
    compared = compare_few_shot(*inputs, shots=3, draws=4)
    assert [c.name for c in compared] == NAMES
    assert compared == compare_few_shot(*inputs, shots=3, draws=4)
    by_name = {c.name: c for c in compared}
    assert by_name["raw pixels"].few_shot > by_name["mean PCA coefficients"].few_shot  # pooling loses where things are
    assert all(c.few_shot_stderr is not None and 0 <= c.knn <= 1 for c in compared)


def test_linear_probes_learn_from_each_kind_of_features(inputs):
    settings = ProbeSettings(epochs=10, lr_multipliers=(10.0, 100.0), seeds=(0, 1))
    compared = compare_linear(*inputs, settings)
    assert [c.name for c in compared] == NAMES
    assert {c.name: c.accuracy for c in compared}["raw pixels"] > 0.8
    assert all(c.learning_rate in settings.learning_rates(540) for c in compared)
