import pytest
import torch
from transformers import AutoModel

from ldae import DDAEModel
from ldae.data import Batch
from ldae.evaluation.encoder import JoinedEncoder
from ldae.evaluation.features import extract_features, feature_map
from ldae.extraction.reader import FeatureReader
from tests.models.small_diffusers import draw_input, small_unet
from tests.models.small_models import draw_images


def test_one_choice_is_the_column_features(encoder):
    pixels = draw_images()
    reader = FeatureReader(encoder, pixels[:1])
    assert reader.columns == {"features": (32,)}
    torch.testing.assert_close(
        reader(pixels, torch.arange(3))["features"], encoder(pixels).pooler_output, atol=1e-6, rtol=0
    )


def test_several_choices_have_a_column_each_with_what_the_probes_read(encoder):
    images = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
    pixels = images / 127.5 - 1
    for noisy in (False, True):
        reader = FeatureReader(encoder, pixels[:1], layers=[3, 1], timesteps=[0, 400], noisy=noisy, seed=7)
        found = reader(pixels, torch.arange(5))
        assert list(found) == [
            "features_layer3_t0",
            "features_layer3_t400",
            "features_layer1_t0",
            "features_layer1_t400",
        ]
        batches = [Batch(images, torch.arange(5), None)]
        probed = extract_features(encoder, batches, layers=[3, 1], timesteps=[0, 400], noisy=noisy, seed=7)
        for column, values in zip(found.values(), probed.flat.unbind(1), strict=True):
            torch.testing.assert_close(column, values, atol=1e-5, rtol=0)


def test_joined_choices_are_the_column_features(encoder):
    joined = FeatureReader(JoinedEncoder(encoder, [2, 1], [0, 20]), torch.zeros(1, 3, 16, 16))
    apart = FeatureReader(encoder, torch.zeros(1, 3, 16, 16), layers=[2, 1], timesteps=[0, 20])
    pixels, rows = torch.randn(3, 3, 16, 16), torch.arange(3)
    assert (joined.layers, joined.timesteps) == ([2, 1], [0, 20]) and list(joined.columns) == ["features"]
    torch.testing.assert_close(joined(pixels, rows)["features"], torch.cat(list(apart(pixels, rows).values()), dim=1))
    with pytest.raises(ValueError, match="only pooled features are joined"):
        FeatureReader(JoinedEncoder(encoder, [1]), torch.zeros(1, 3, 16, 16), pool="none")


def test_all_places_are_maps(encoder):
    pixels = draw_images()
    reader = FeatureReader(encoder, pixels[:1], layers=[1, 2], pool="none")
    found = reader(pixels, torch.arange(3))
    assert reader.columns["features_layer1_t10"] == (32, 4, 4)
    torch.testing.assert_close(found["features_layer1_t10"], feature_map(encoder, pixels, layer=1))


def test_taps_of_a_ddae_keep_their_own_widths():
    unet = small_unet()
    model, pixels = DDAEModel.from_diffusers(unet, feature_layer="last"), draw_input(unet)
    taps = ["mid_block.resnets.0", "up_blocks.1.resnets.1"]
    pooled = FeatureReader(model, pixels[:1], layers=taps, timesteps=[3])
    assert pooled.columns == {
        "features_mid_block_resnets_0_t3": (16,),
        "features_up_blocks_1_resnets_1_t3": (8,),
    }
    maps = FeatureReader(model, pixels[:1], layers=taps, timesteps=[3], pool="none")
    assert list(maps.columns.values()) == [(16, 8, 8), (8, 16, 16)]
    values = zip(pooled(pixels, torch.arange(2)).values(), maps(pixels, torch.arange(2)).values(), strict=True)
    for mean, places in values:
        torch.testing.assert_close(mean, places.mean(dim=(2, 3)), atol=1e-5, rtol=0)


def test_other_models_give_their_pooler_their_tokens_mean_or_their_tokens(other_checkpoint):
    model = AutoModel.from_pretrained(other_checkpoint)
    pixels = draw_images(height=12, width=12)
    outputs = model.eval()(pixels)
    expected = {
        ("mean", True): outputs.pooler_output,
        ("mean", False): outputs.last_hidden_state.mean(dim=1),
        ("none", True): outputs.last_hidden_state,
    }
    for (pool, use_pooler), values in expected.items():
        reader = FeatureReader(model, pixels[:1], pool=pool, use_pooler=use_pooler)
        torch.testing.assert_close(reader(pixels, torch.arange(3))["features"], values)
    with pytest.raises(ValueError, match="layers, timesteps and noisy are choices of l-DAE and DDAE models"):
        FeatureReader(model, pixels[:1], layers=[1])


def test_half_precision_and_wrong_choices(encoder):
    pixels = draw_images()
    full, half = (FeatureReader(encoder, pixels[:1], dtype=dtype) for dtype in (None, torch.bfloat16))
    values = [reader(pixels, torch.arange(3))["features"].float() for reader in (full, half)]
    assert 1e-5 < (values[0] - values[1]).abs().max() < 0.1
    with pytest.raises(ValueError, match="pool='max' does not exist; choose 'mean' or 'none'"):
        FeatureReader(encoder, pixels[:1], pool="max")
    with pytest.raises(ValueError, match=r"layers=\[4\] must be .* the blocks 1 to 3"):
        FeatureReader(encoder, pixels[:1], layers=[4])
