import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModel, ViTConfig, ViTModel

from ldae.data import Batch, iterate_once, prepare_images
from ldae.evaluation.features import extract_features
from ldae.models.randomness_ldae import NOISE, keyed_normal


@pytest.fixture
def batches(digits):
    return list(iterate_once(digits[1], image_size=16, batch_size=8, limit=20))


def pixels_of(batch):
    return prepare_images(batch.images, batch.positions, 0, image_size=16)


def test_the_default_is_the_models_pooler_output(model, batches):
    features = extract_features(model, batches)
    assert features.values.shape == (20, 1, 1, 32)
    assert features.columns == [(2, 10)]
    assert torch.equal(features.classes, torch.cat([batch.labels for batch in batches]))
    with torch.no_grad():
        expected = torch.cat([model.ldae(pixels_of(batch)).pooler_output for batch in batches])
    assert torch.equal(features.values[:, 0, 0], expected)


def test_the_last_encoder_block_among_others_equals_pooler_output(model, batches, config):
    alone = extract_features(model, batches, timesteps=[0, 500])
    sweep = extract_features(model, batches, layers=[4, 1, 2], timesteps=[0, 500])
    assert sweep.values.shape == (20, 3, 2, 32)
    assert sweep.columns == [(4, 0), (4, 500), (1, 0), (1, 500), (2, 0), (2, 500)]
    torch.testing.assert_close(sweep.values[:, 2], alone.values[:, 0], rtol=1e-5, atol=1e-6)
    assert torch.equal(sweep.flat[:, 5], sweep.values[:, 2, 1])
    # The decoder's last block, by hand.
    with torch.no_grad():
        t, hidden = torch.tensor([500]), None
        hidden = model.ldae(pixels_of(batches[0]), t, output_hidden_states=True).hidden_states[4]
    expected = F.layer_norm(hidden, (32,), eps=config.layer_norm_eps).mean(dim=1)
    torch.testing.assert_close(sweep.values[:8, 0, 1], expected)


def test_an_encoder_cut_after_a_block_gives_that_blocks_features(model, checkpoint, batches):
    sweep = extract_features(model, batches, layers=[1, 3])
    for index, layer in enumerate(sweep.layers):
        cut = AutoModel.from_pretrained(checkpoint, num_hidden_layers=layer)
        torch.testing.assert_close(extract_features(cut, batches).values[:, 0], sweep.values[:, index])
    both = extract_features(AutoModel.from_pretrained(checkpoint, num_hidden_layers=3), batches, layers=[1, 3])
    torch.testing.assert_close(both.values, sweep.values)


def test_noise_depends_on_position_and_seed_alone(model, batches):
    noisy = extract_features(model, batches, timesteps=[400], noisy=True)
    assert not torch.allclose(noisy.values, extract_features(model, batches, timesteps=[400]).values, atol=1e-2)
    assert torch.equal(noisy.values, extract_features(model, batches, timesteps=[400], noisy=True).values)
    other = extract_features(model, batches, timesteps=[400], noisy=True, seed=1)
    assert not torch.allclose(noisy.values, other.values, atol=1e-3)

    order = torch.tensor([5, 2, 7])
    some = Batch(batches[0].images[order], batches[0].positions[order], batches[0].labels[order])
    again = extract_features(model, [some], timesteps=[400], noisy=True)
    torch.testing.assert_close(again.values, noisy.values[order], rtol=1e-4, atol=1e-5)

    eps = keyed_normal(0, NOISE, some.positions, 16 * 8).view(3, 16, 8)
    with torch.no_grad():
        expected = model.ldae(pixels_of(some), torch.tensor([400] * 3), eps).pooler_output
    torch.testing.assert_close(again.values[:, 0, 0], expected, rtol=1e-4, atol=1e-5)


def test_the_model_keeps_its_modes_and_collects_no_gradient(model, batches):
    model.train()
    model.ldae.layers[0].eval()
    features = extract_features(model, batches)
    assert model.training and model.ldae.layers[1].training and not model.ldae.layers[0].training
    assert not features.values.requires_grad


def test_bf16_is_close(model, batches):
    exact, rough = extract_features(model, batches), extract_features(model, batches, dtype=torch.bfloat16)
    assert rough.values.dtype == torch.float32
    assert 0 < (exact.values - rough.values).abs().max() < 0.1


def test_other_models_of_auto_model(batches):
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    vit = ViTModel(ViTConfig(image_size=16, patch_size=4, **sizes), add_pooling_layer=False)
    features = extract_features(vit, batches)
    assert features.columns == [(None, None)]
    with torch.no_grad():
        expected = vit.eval()(pixels_of(batches[0])).last_hidden_state.mean(dim=1)
    torch.testing.assert_close(features.values[:8, 0, 0], expected)
    with pytest.raises(ValueError, match="ViTModel has none"):
        extract_features(vit, batches, layers=[1])


@pytest.mark.parametrize(
    "options, named",
    [({"layers": [5]}, r"layers=\[5\].*1 to 4"), ({"layers": [1, 1]}, "each once"), ({"timesteps": [1000]}, "999")],
)
def test_impossible_choices_are_refused(model, batches, options, named):
    with pytest.raises(ValueError, match=named):
        extract_features(model, batches, **options)


def test_missing_labels_and_images(model, batches):
    unlabelled = [Batch(batch.images, batch.positions, None) for batch in batches]
    with pytest.raises(ValueError, match="label_column"):
        _ = extract_features(model, unlabelled).classes
    partly = [Batch(batch.images, batch.positions, batch.labels - 3) for batch in batches]
    with pytest.raises(ValueError, match=r"of 20 images have no label"):
        _ = extract_features(model, partly).classes
    with pytest.raises(ValueError, match="no images"):
        extract_features(model, [])
