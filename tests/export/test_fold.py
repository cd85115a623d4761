import copy

import pytest
import torch
from torch import nn

from ldae import DDAEModel, LDAEForImageClassification, LDAEForPreTraining, LDAEModel
from ldae.export.fold import fold
from ldae.export.graph import FixedStep, PlainEncoder
from ldae.export.native import build_native, build_siglip
from ldae.export.timm_vit import timm_arguments, timm_forward, timm_state_dict
from ldae.models.tokenizer_ldae import PatchAutoencoder
from tests.models.small_diffusers import small_unet
from tests.models.small_models import draw_images, open_gates, small_config


CONV_VAE = {"latent_channels": 2, "block_out_channels": [4, 4], "norm_num_groups": 2, "layers_per_block": 1}
SMALL_CONV_VAE = {"latent_tokenizer": "conv_vae", "conv_vae_config": CONV_VAE, "latent_dim": 8}
LATENT = {"input_space": "latent", "prediction_target": "latent"}

# What can differ between l-DAEs, a row each.
VARIANTS: dict[str, dict[str, object]] = {
    "pca": {},
    "pca, t = 0": {"feature_timestep": 0},
    "pca, t = 999": {"feature_timestep": 999},
    "pca, scaled by dimension": {"latent_scaling": "per_dim"},
    "pca, not scaled": {"latent_scaling": "none"},
    "pca, latent input": LATENT,
    "pca, latent input, not scaled, DDPM's schedule": LATENT
    | {"latent_scaling": "none", "noise_schedule": "linear_beta", "feature_timestep": 500},
    "pca, gamma below 1": {"noise_schedule": "linear_gamma2", "feature_timestep": 300},
    "pca, constant noise": {"noise_schedule": "constant"},
    "the image as it is": {"project_clean_input": False},
    "pixels": {"latent_tokenizer": "pixel", "latent_dim": 12},
    "pixels, latent input": {"latent_tokenizer": "pixel", "latent_dim": 12} | LATENT,
    "ae": {"latent_tokenizer": "ae", "residual_weight": 1.0},
    "vae, latent input": {"latent_tokenizer": "vae"} | LATENT | {"latent_scaling": "per_dim"},
    "classes, of which none": {"num_class_embeds": 10},
    "no bias of query, key and value": {"qkv_bias": False},
    "an earlier block": {"feature_layer": 1},
    "one channel": {"num_channels": 1, "latent_dim": 6},
    "other patches and images": {"image_size": 24, "patch_size": 8},
    "another activation": {"hidden_act": "gelu"},
}


def small_model(**fields: object) -> LDAEModel:
    model = open_gates(LDAEModel(small_config(**fields)))
    if isinstance(model.tokenizer, PatchAutoencoder):
        generator = torch.Generator().manual_seed(4)
        for name in ("mean", "components", "decoder_weight"):
            nn.init.normal_(getattr(model.tokenizer, name), std=0.3, generator=generator)
        model.tokenizer.explained_variance.copy_(torch.linspace(2, 0.1, model.tokenizer.latent_dim))
    return model


def images_of(model: LDAEModel, size: int | None = None) -> torch.Tensor:
    size = size or model.config.image_size
    return draw_images(channels=model.config.num_channels, height=size, width=size)


@pytest.mark.parametrize("fields", VARIANTS.values(), ids=VARIANTS.keys())
@torch.no_grad()
def test_a_folded_encoder_computes_what_the_model_does(fields):
    model = small_model(**fields)
    images = images_of(model)
    expected = model(images)
    vit = fold(model)
    native = build_native(vit)(images)
    timm_tokens, timm_pooled = timm_forward(timm_state_dict(vit), images, **timm_arguments(vit))
    traced = PlainEncoder(vit)(images)
    for tokens, pooled in (
        (native.last_hidden_state, native.pooler_output),
        (timm_tokens, timm_pooled),
        (traced["last_hidden_state"], traced["pooler_output"]),
    ):
        torch.testing.assert_close(tokens, expected.last_hidden_state, rtol=0, atol=2e-5)
        torch.testing.assert_close(pooled, expected.pooler_output, rtol=0, atol=2e-5)


@torch.no_grad()
def test_the_fold_is_exact():
    """In float64 nothing is left but rounding: what float32 shows is float32's own."""
    model = small_model(latent_scaling="per_dim", noise_schedule="linear_gamma2").double()
    images = images_of(model).double()
    native = build_siglip(fold(model, 300), dtype=torch.float64)(images)
    expected = model(images, torch.tensor([300]))
    torch.testing.assert_close(native.last_hidden_state, expected.last_hidden_state, rtol=0, atol=1e-12)
    torch.testing.assert_close(native.pooler_output, expected.pooler_output, rtol=0, atol=1e-12)


@torch.no_grad()
def test_time_step_and_image_size_are_choices():
    model = small_model()
    images = images_of(model, 24)
    native = build_native(fold(model, 500, image_size=24))
    expected = model(images, torch.tensor([500]), interpolate_pos_encoding=True)
    torch.testing.assert_close(native(images).last_hidden_state, expected.last_hidden_state, rtol=0, atol=2e-5)
    assert not torch.allclose(native(images).pooler_output, model(images, interpolate_pos_encoding=True)[1], atol=1e-3)
    assert native.config.image_size == 24


@torch.no_grad()
def test_a_classifier_keeps_its_logits_and_names():
    model = open_gates(LDAEForImageClassification(small_config(num_labels=3)))
    images = draw_images()
    vit = fold(model, 40)
    expected = FixedStep(model, 40)(images)["logits"]
    native = build_native(vit, {0: "a", 1: "b", 2: "c"})
    torch.testing.assert_close(native(images).logits, expected, rtol=0, atol=2e-5)
    assert native.config.id2label == {0: "a", 1: "b", 2: "c"}
    torch.testing.assert_close(PlainEncoder(vit)(images)["logits"], expected, rtol=0, atol=2e-5)
    logits = timm_forward(timm_state_dict(vit), images, **timm_arguments(vit))[1]
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-5)


@torch.no_grad()
def test_a_ddae_of_an_ldae_folds_at_its_tap():
    ddae = DDAEModel.from_diffusers(open_gates(LDAEForPreTraining(small_config())), "layers.0", 20)
    images = draw_images()
    native = build_native(fold(ddae))
    torch.testing.assert_close(native(images).pooler_output, ddae(images).pooler_output, rtol=0, atol=2e-5)
    assert native.config.num_hidden_layers == 1


def test_folding_changes_nothing():
    model = small_model()
    before = copy.deepcopy(model.state_dict())
    fold(model, 5)
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == before[name].dtype and torch.equal(tensor, before[name]), name


def test_what_is_no_plain_vit_is_refused_with_the_reason():
    with pytest.raises(ValueError, match="convolutional network in front of the blocks"):
        fold(LDAEModel(small_config(**SMALL_CONV_VAE, **LATENT)))
    with pytest.raises(ValueError, match="its network is a UNet2DModel of diffusers"):
        fold(DDAEModel.from_diffusers(small_unet()))


def test_impossible_choices_are_refused():
    model = small_model()
    with pytest.raises(ValueError, match="timestep=1000 does not exist; choose one of 0 to 999"):
        fold(model, 1000)
    with pytest.raises(ValueError, match="image_size=18 must be a multiple of 4 pixels"):
        fold(model, image_size=18)
    with pytest.raises(ValueError, match="layer_norm_eps=1e-05 differs from 1e-06, which timm's VisionTransformer"):
        timm_arguments(fold(small_model(layer_norm_eps=1e-5)))
    with pytest.raises(ValueError, match="hidden_act='gelu_new' has no name in timm"):
        timm_arguments(fold(small_model(hidden_act="gelu_new")))
