import pytest
import torch

from ldae import DDAEModel, LDAEConfig, LDAEForPreTraining
from ldae.data import DataConfig, iterate_once, open_probe_images
from ldae.evaluation.baselines import pixel_features
from ldae.evaluation.comparison import compare_few_shot, compare_linear, feature_sets
from ldae.evaluation.features import extract_features
from ldae.evaluation.linear_probe import ProbeSettings
from ldae.evaluation.ridge import few_shot_ridge

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
    compared = compare_few_shot(*inputs, shots=3, draws=4)
    assert [c.name for c in compared] == NAMES
    assert compared == compare_few_shot(*inputs, shots=3, draws=4)
    by_name = {c.name: c for c in compared}
    assert by_name["raw pixels"].few_shot > by_name["mean PCA coefficients"].few_shot  # pooling loses where things are
    assert all(c.few_shot_stderr is not None and c.knn is not None and 0 <= c.knn <= 1 for c in compared)
    alone = few_shot_ridge(
        *(
            part
            for batches in inputs[1:]
            for part in (pixel_features(batches, image_size=16).flat[:, 0], labels(batches))
        ),
        shots=3,
        draws=4,
    )
    assert by_name["raw pixels"].few_shot == pytest.approx(sum(alone) / 4)


def test_the_chosen_block_of_a_ddae_and_of_its_untrained_twin_is_compared(inputs):
    ddae = DDAEModel.from_diffusers(small_unet(), "last")
    tap = "up_blocks.0.resnets.0"
    sets = feature_sets(ddae, inputs[1], inputs[2], layer=tap, timestep=21, noisy=True)
    assert list(sets) == ["trained encoder", "untrained encoder", "raw pixels"]
    for name in ("trained encoder", "untrained encoder"):
        assert sets[name][0].columns == [(tap, 21)] and sets[name][0].values.shape[-1] == 16
    assert not torch.equal(sets["trained encoder"][1].values, sets["untrained encoder"][1].values)
    expected = extract_features(ddae, inputs[2], layers=[tap], timesteps=[21], noisy=True)
    assert torch.equal(sets["trained encoder"][1].values, expected.values)


def labels(batches):
    return torch.cat([batch.labels for batch in batches])


def test_linear_probes_learn_from_each_kind_of_features(inputs):
    settings = ProbeSettings(epochs=10, lr_multipliers=(10.0, 100.0), seeds=(0, 1))
    compared = compare_linear(*inputs, settings)
    assert [c.name for c in compared] == NAMES
    assert {c.name: c.accuracy for c in compared}["raw pixels"] > 0.8
    assert all(c.learning_rate in settings.learning_rates(540) for c in compared)
