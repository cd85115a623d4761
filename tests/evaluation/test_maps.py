import pytest
import torch
from torch.nn import functional as F
from transformers import ViTConfig, ViTModel

from ldae import DDAEForPreTraining, DDAEModel, LDAEConfig, LDAEForPreTraining, LDAEModel
from ldae.evaluation.maps import feature_map
from tests.models.small_diffusers import draw_input, small_dit, small_unet
from tests.models.small_models import draw_images, open_gates, small_config


def test_an_ldaes_map_holds_its_own_features_row_by_row():
    model, pixels = open_gates(LDAEModel(small_config())), draw_images(height=8, width=16)
    found = feature_map(model, pixels)
    tokens = model(pixels, interpolate_pos_encoding=True).last_hidden_state
    assert found.shape == (3, 32, 2, 4)
    torch.testing.assert_close(found[:, :, 1, 2], tokens[:, 1 * 4 + 2])


def test_blocks_of_the_decoder_and_time_steps_are_chosen():
    model, pixels = open_gates(LDAEForPreTraining(small_config())), draw_images()
    hidden = model.ldae(pixels, torch.tensor([30]), output_hidden_states=True).hidden_states[3]
    expected = F.layer_norm(hidden, (32,), eps=1e-6).transpose(1, 2).unflatten(2, (4, 4))
    torch.testing.assert_close(feature_map(model, pixels, layer=3, timestep=30), expected)


def test_a_ddaes_maps_are_its_taps():
    unet = small_unet()
    model = DDAEModel.from_diffusers(unet, feature_layer="last")
    pixels = draw_input(unet)
    found = feature_map(model, pixels, layer="mid_block.resnets.0", timestep=5)
    torch.testing.assert_close(
        found, model.features(pixels, ["mid_block.resnets.0"], [5], pool="none")["mid_block.resnets.0"][0]
    )
    whole = DDAEForPreTraining(model.config)
    assert feature_map(whole, pixels, layer="up_blocks.1.resnets.0").shape == (2, 8, 16, 16)
    dit = DDAEModel.from_diffusers(small_dit())
    assert feature_map(dit, draw_input(dit.denoiser)).shape == (2, 16, 4, 4)


def test_what_has_no_map_is_refused():
    model = LDAEModel(LDAEConfig.from_size("nano", image_size=16, patch_size=4, latent_dim=8))
    with pytest.raises(ValueError, match=r"layers=\[0\] is not possible; give different ones of numbers from 1 to 2"):
        feature_map(model, draw_images(), layer=0)
    with pytest.raises(ValueError, match="multiples of patch_size=4"):
        feature_map(model, draw_images(width=18))
    other = ViTModel(ViTConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8))
    with pytest.raises(ValueError, match="a ViTModel is not possible here"):
        feature_map(other, draw_images())
