"""Every encoder keeps to one interface: shapes, positions, modes, choices and untrained twins."""

import pytest
import torch
from torch.nn import functional as F
from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

from ldae import DDAEForPreTraining, DDAEModel, LDAEForPreTraining, LDAEModel
from ldae.data import iterate_once
from ldae.evaluation.encoder import (
    JoinedEncoder,
    LatentEncoder,
    PixelEncoder,
    PooledEncoder,
    as_encoder,
    baselines_of,
)
from ldae.evaluation.features import extract_features, feature_map
from ldae.models.tokenizer_ldae import patchify

from ..models.small_diffusers import draw_input, small_dit, small_unet
from ..models.small_models import draw_images, open_gates, small_config


def small_vit():
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return ViTModel(ViTConfig(image_size=16, patch_size=4, **sizes))


ENCODERS = {
    "l-DAE": lambda: as_encoder(open_gates(LDAEModel(small_config()))),
    "l-DAE for pre-training": lambda: as_encoder(open_gates(LDAEForPreTraining(small_config()))),
    "UNet": lambda: as_encoder(DDAEModel.from_diffusers(small_unet(), "last")),
    "DiT": lambda: as_encoder(DDAEModel.from_diffusers(small_dit(), "last", image_size=4)),
    "DDAE for pre-training": lambda: as_encoder(
        DDAEForPreTraining(DDAEModel.from_diffusers(small_unet(), "last").config)
    ),
    "joined": lambda: JoinedEncoder(open_gates(LDAEModel(small_config())), [1, 2], [0, 40]),
    "ViT": lambda: PooledEncoder(small_vit(), ViTImageProcessorPil(size={"height": 16, "width": 16})),
    "pixels": lambda: PixelEncoder(16),
    "latents": lambda: LatentEncoder(LDAEModel(small_config())),
}


@pytest.mark.parametrize("make", ENCODERS.values(), ids=ENCODERS.keys())
def test_the_interface(make):
    torch.manual_seed(0)
    encoder = make()
    pixels = torch.randn(3, encoder.num_channels, encoder.image_size, encoder.image_size)
    layers, timesteps = encoder.choices(None, None)
    assert layers == [encoder.default_layer] and timesteps == [encoder.default_timestep]
    assert set(encoder.search_layers) <= set(encoder.feature_layers) and encoder.pooling and encoder.name
    with encoder.evaluating():
        (vectors,) = encoder.features(pixels).values()
        again = encoder.features(pixels, layers, timesteps)[encoder.default_layer]
        (one,) = encoder.features(pixels[1:2]).values()
    assert vectors.ndim == 3 and vectors.shape[:2] == (1, 3) and not vectors.requires_grad
    assert torch.equal(vectors, again)
    torch.testing.assert_close(one[0, 0], vectors[0, 1], rtol=1e-4, atol=1e-5)
    if encoder.module is None:
        return
    modes = [module.train(index % 2 == 0).training for index, module in enumerate(encoder.module.modules())]
    before = [module.training for module in encoder.module.modules()]
    with encoder.evaluating():
        assert not any(module.training for module in encoder.module.modules())
    assert [module.training for module in encoder.module.modules()] == before and len(modes) == len(before)


@pytest.mark.parametrize("make", list(ENCODERS.values())[:7], ids=list(ENCODERS)[:7])
def test_an_untrained_twin_has_the_same_layers_and_other_features(make):
    torch.manual_seed(0)
    encoder = make()
    state = torch.random.get_rng_state()
    fresh, again, other = encoder.untrained(3), encoder.untrained(3), encoder.untrained(4)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert list(fresh.feature_layers) == list(encoder.feature_layers) and type(fresh) is type(encoder)
    pixels = torch.randn(2, encoder.num_channels, encoder.image_size, encoder.image_size)
    values = []
    for each in (fresh, again, other, encoder):
        with each.evaluating():
            values.append(next(iter(each.features(pixels).values())))
    assert torch.equal(values[0], values[1])
    assert not torch.allclose(values[0], values[2]) and not torch.allclose(values[0], values[3])


@pytest.mark.parametrize("make", list(ENCODERS.values())[:5], ids=list(ENCODERS)[:5])
def test_layers_time_steps_and_noise_are_chosen(make):
    torch.manual_seed(0)
    encoder = make()
    layers, positions = list(encoder.feature_layers), torch.tensor([5, 2])
    pixels = torch.randn(2, encoder.num_channels, encoder.image_size, encoder.image_size)
    with encoder.evaluating():
        noise = encoder.draw_noise(pixels, positions, seed=1)
        found = encoder.features(pixels, layers, [0, 9], noise)
        clean = encoder.features(pixels, layers[-1:], [9])[layers[-1]]
        maps = encoder.features(pixels, layers[-1:], [9], noise, pool="map")[layers[-1]]
    assert list(found) == layers and all(values.shape[:2] == (2, 2) for values in found.values())
    assert torch.equal(noise, encoder.draw_noise(pixels.flip(0), positions, seed=1))
    torch.testing.assert_close(maps[0].mean(dim=(2, 3)), found[layers[-1]][1])
    assert not torch.allclose(clean[0], found[layers[-1]][1], atol=1e-4)
    with pytest.raises(ValueError, match=r"timesteps=.* must be one or more of the numbers from 0 to"):
        encoder.choices(None, [encoder.num_train_timesteps])
    with pytest.raises(ValueError, match=r"layers=.*nowhere.* must be one or more of"):
        encoder.choices(["nowhere"], None)


@pytest.mark.parametrize("make", list(ENCODERS.values())[5:], ids=list(ENCODERS)[5:])
def test_an_encoder_without_choices_refuses_them(make):
    encoder = make()
    for options in ({"layers": [1]}, {"timesteps": [0]}, {"noisy": True}):
        with pytest.raises(ValueError, match=f"a {encoder.name} has none of them"):
            encoder.choices(**{"layers": None, "timesteps": None, **options})


def test_pixels_and_latents_are_those_of_the_images(digits):
    batches = list(iterate_once(digits[1], image_size=16, batch_size=10, limit=30))
    pixels = extract_features(PixelEncoder(16), batches)
    images = torch.cat([batch.images for batch in batches])
    assert torch.equal(pixels.flat[:, 0], images.flatten(1).float() / 127.5 - 1) and len(pixels.classes) == 30
    model = LDAEModel(small_config())
    model.tokenizer.mean.normal_(generator=torch.Generator().manual_seed(0))
    encoder = baselines_of(as_encoder(model))[1]
    latents = extract_features(encoder, batches).flat[:, 0]
    expected = model.tokenizer.encode(patchify(pixels.flat.view(30, 3, 16, 16), 4).mean(dim=1))
    torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-5)


def test_maps_hold_features_row_by_row():
    model, pixels = open_gates(LDAEModel(small_config())), draw_images(height=8, width=16)
    found = feature_map(model, pixels)
    tokens = model(pixels, interpolate_pos_encoding=True).last_hidden_state
    assert found.shape == (3, 32, 2, 4)
    torch.testing.assert_close(found[:, :, 1, 2], tokens[:, 1 * 4 + 2])


def test_maps_of_the_decoders_blocks_and_of_time_steps():
    model, pixels = open_gates(LDAEForPreTraining(small_config())), draw_images()
    hidden = model.ldae(pixels, torch.tensor([30]), output_hidden_states=True).hidden_states[3]
    expected = F.layer_norm(hidden, (32,), eps=1e-6).transpose(1, 2).unflatten(2, (4, 4))
    torch.testing.assert_close(feature_map(model, pixels, layer=3, timestep=30), expected)


def test_maps_of_a_ddae_are_its_taps():
    unet = small_unet()
    model = DDAEModel.from_diffusers(unet, feature_layer="last")
    pixels, tap = draw_input(unet), "mid_block.resnets.0"
    found = feature_map(model, pixels, layer=tap, timestep=5)
    torch.testing.assert_close(found, model.features(pixels, [tap], [5], pool="none")[tap][0])
    assert feature_map(DDAEForPreTraining(model.config), pixels, layer="up_blocks.1.resnets.0").shape == (2, 8, 16, 16)
    dit = DDAEModel.from_diffusers(small_dit())
    assert feature_map(dit, draw_input(dit.denoiser)).shape == (2, 16, 4, 4)


def test_what_has_no_map_is_refused():
    model = LDAEModel(small_config())
    with pytest.raises(ValueError, match=r"layers=\[0\] must be .* the blocks 1 to"):
        feature_map(model, draw_images(), layer=0)
    with pytest.raises(ValueError, match="must be multiples of 4"):
        feature_map(model, draw_images(width=18))
    with pytest.raises(ValueError, match="a ViTModel has no feature maps"):
        feature_map(small_vit(), draw_images())


def test_joined_features_are_those_of_each_layer_and_time_step_one_after_the_other():
    torch.manual_seed(0)
    model = open_gates(LDAEModel(small_config()))
    joined, pixels = JoinedEncoder(model, [2, 1], [40, 0]), torch.randn(3, 3, 16, 16)
    with joined.evaluating():
        values, each = joined.features(pixels)[None][0], model.features(pixels, [2, 1], [40, 0])
    torch.testing.assert_close(values, torch.cat([each[2][0], each[2][1], each[1][0], each[1][1]], dim=1))
    assert "layers 2, 1 at t = 40, 0 joined" in joined.pooling
    with pytest.raises(ValueError, match="only pooled features are joined"):
        joined.features(pixels, pool="none")
    with pytest.raises(ValueError, match="layers"):
        JoinedEncoder(model, [9])
    with pytest.raises(ValueError, match="only layers of l-DAE and DDAE models are joined"):
        JoinedEncoder(PixelEncoder(16), [None])
    assert next(encoder.name for encoder in baselines_of(joined)) == "untrained encoder"
