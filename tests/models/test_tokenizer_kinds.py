"""Every latent tokenizer inside every model that takes it: shapes, round trips, gradients, saved and loaded again."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModel
from transformers.dynamic_module_utils import get_imports

from ldae import LDAEConfig, LDAEForPreTraining, LDAEModel, PatchPixels
from ldae.models import tokenizer_ldae

from .small_models import draw_images, open_gates


TINY_VAE = {"block_out_channels": [8, 16], "layers_per_block": 1, "latent_channels": 2, "norm_num_groups": 4}
KINDS = {
    "pca": {"latent_dim": 8},
    "ae": {"latent_dim": 8},
    "vae": {"latent_dim": 8},
    "pixel": {"latent_dim": 12},
    "conv_vae": {"latent_dim": 8, "conv_vae_config": TINY_VAE},
}
LATENT = {"input_space": "latent", "prediction_target": "noise", "loss_weighting": "uniform"}


def make_config(kind: str, **fields: object) -> LDAEConfig:
    chosen = {"image_size": 16, "patch_size": 4, **LATENT, "noise_schedule": "linear_gamma2", **KINDS[kind], **fields}
    return LDAEConfig.from_size("nano", latent_tokenizer=kind, **chosen)


def make_model(kind: str, **fields: object) -> LDAEForPreTraining:
    torch.manual_seed(0)
    model = open_gates(LDAEForPreTraining(make_config(kind, **fields)))
    torch.nn.init.normal_(model.head.projection.weight, std=0.1)
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", ["noise", "latent"])
def test_every_tokenizer_trains_a_denoiser(kind: str, target: str) -> None:
    weighting = "uniform" if target == "noise" else "gamma2"
    model = make_model(kind, prediction_target=target, loss_weighting=weighting)
    timesteps, noise = model.draw_corruption(torch.arange(3), seed=0)
    outputs = model.train()(draw_images(), timesteps, noise)
    outputs.loss.backward()
    assert outputs.prediction.shape == (3, 16, model.config.latent_dim)
    assert all(p.grad is None for p in model.ldae.tokenizer.parameters())
    assert all(p.grad is not None for n, p in model.named_parameters() if ".tokenizer." not in n)
    reconstruction = model.eval()(draw_images(), timesteps, noise).reconstruction
    assert reconstruction.shape == (3, 3, 16, 16)
    assert (outputs.reconstruction is None) == (kind == "conv_vae")


@pytest.mark.parametrize("kind", KINDS)
def test_latents_computed_before_give_the_same_loss(kind: str) -> None:
    model = make_model(kind).eval()
    timesteps, noise = model.draw_corruption(torch.arange(3), seed=0)
    latents = model.ldae.encode(draw_images())
    whole = model(draw_images(), timesteps, noise)
    torch.testing.assert_close(model(None, timesteps, noise, latents=latents).loss, whole.loss)
    with pytest.raises(ValueError, match="take the place of pixel_values"):
        model(draw_images(), timesteps, noise, latents=latents)
    with pytest.raises(ValueError, match="pixel_values is missing"):
        model(None, timesteps, noise)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_denoiser_loads_as_an_encoder_that_takes_pixels(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = make_model(kind).eval()
    tokenizer = model.ldae.tokenizer
    for name, buffer in tokenizer.named_buffers():
        if name != "fitted":
            torch.nn.init.normal_(buffer).abs_()
    model.save_pretrained(tmp_path)
    encoder = AutoModel.from_pretrained(tmp_path, dtype=dtype)
    assert isinstance(encoder, LDAEModel)
    for name, tensor in tokenizer.state_dict().items():
        loaded = encoder.tokenizer.state_dict()[name]
        assert loaded.dtype == tensor.dtype and torch.equal(loaded, tensor), name
    expected = LDAEModel.forward(model.ldae, draw_images()).pooler_output
    found = encoder(draw_images().to(dtype)).pooler_output.float()
    torch.testing.assert_close(
        found, expected, **({"atol": 1e-5, "rtol": 0} if dtype is torch.float32 else {"atol": 0.2, "rtol": 0})
    )


@pytest.mark.parametrize(
    "kind", [kind if kind in ("pca", "conv_vae") else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
def test_every_tokenizer_compiles_whole(kind: str) -> None:
    model = make_model(kind).eval()
    timesteps, noise = model.draw_corruption(torch.arange(3), seed=0)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(
        compiled(draw_images(), timesteps, noise).loss, model(draw_images(), timesteps, noise).loss
    )


def test_pixels_are_the_patches_of_the_resized_image() -> None:
    tokenizer = PatchPixels(patch_size=4, num_channels=3, latent_dim=12)
    images = draw_images()
    small = torch.nn.functional.avg_pool2d(images, 2)  # (3, 3, 8, 8)
    from ldae import patchify

    latents = tokenizer.encode_images(images)
    torch.testing.assert_close(latents / 2, patchify(small, 2), atol=1e-6, rtol=0)  # rows of norm 1: a factor of 2
    back = tokenizer.decode_images(latents, 16, 16)
    torch.testing.assert_close(back, torch.nn.functional.interpolate(small, scale_factor=2), atol=1e-6, rtol=0)
    whole = PatchPixels(patch_size=4, num_channels=3, latent_dim=48)
    torch.testing.assert_close(whole.components, torch.eye(48))


def test_the_latent_of_the_convolutional_vae_is_its_posterior_mean() -> None:
    model = make_model("conv_vae").eval()
    tokenizer, images = model.ldae.tokenizer, draw_images()
    mode = tokenizer.vae.encode(images).latent_dist.mode()  # (3, 2, 8, 8)
    latents = tokenizer.unscaled_latents(images)  # (3, 16, 8)
    torch.testing.assert_close(latents.view(3, 4, 4, 2, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(mode.shape), mode)
    torch.testing.assert_close(tokenizer.decode_images(latents, 16, 16), tokenizer.vae.decode(mode).sample)
    tokenizer.mean.fill_(0.5)
    tokenizer.explained_variance.fill_(4.0)
    scaled = tokenizer.encode_images(images)
    torch.testing.assert_close(scaled, (latents - 0.5) / 2)
    torch.testing.assert_close(tokenizer.decode_images(scaled, 16, 16), tokenizer.vae.decode(mode).sample)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"latent_tokenizer": "ae", "prediction_target": "image"},
            "residual_weight=0.1 is invalid; it must be 1",
        ),
        ({"latent_tokenizer": "pixel", "latent_dim": 10}, "latent_dim=10 is invalid"),
        ({"latent_tokenizer": "pca", "conv_vae_config": {}}, "conv_vae_config={} does not apply to"),
        (
            {"latent_tokenizer": "conv_vae", **LATENT, "latent_dim": 7},
            "latent_dim=7 .* latent_tokenizer='conv_vae': .* has latent_dim=16. Give that, or choose another",
        ),
        ({"latent_tokenizer": "conv_vae", "latent_dim": 16}, "input_space='image' does not work with"),
        (
            {"latent_tokenizer": "conv_vae", "latent_dim": 16, "input_space": "latent"},
            "prediction_target='image' does not work with",
        ),
        ({"latent_tokenizer": "conv_vae", "conv_vae_config": {"widht": 3}}, "unknown fields, widht"),
        ({"latent_tokenizer": "conv_vae", "patch_size": 4}, "has a stride of 8 pixels"),
        ({"latent_tokenizer": "vqgan"}, "latent_tokenizer='vqgan' is unknown"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_reason(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LDAEConfig(**fields)


def test_other_image_sizes_go_through_the_convolutional_vae() -> None:
    encoder = AutoModel.from_config(make_config("conv_vae")).eval()
    assert encoder(torch.zeros(1, 3, 16, 24), interpolate_pos_encoding=True).last_hidden_state.shape == (1, 24, 128)


def test_diffusers_is_not_among_the_imports_of_the_remote_code() -> None:
    assert "diffusers" not in get_imports(tokenizer_ldae.__file__)
