"""What DDAE computes: noise, conditions, autoencoder, determinism, compilation, gradients; and what it refuses."""

from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from transformers.dynamic_module_utils import get_imports

from ldae import DDAEConfig, DDAEForImageClassification, DDAEModel, LDAEModel
from ldae.hub.remote_code import code_files
from ldae.models.features_ldae import tokens_of
from tests.models.small_diffusers import (
    call,
    draw_input,
    gamma,
    hooked,
    small_conditional_unet,
    small_dit,
    small_unet,
    small_vae,
)
from tests.models.small_models import draw_images, open_gates, small_config


TAP = "up_blocks.0.resnets.1"
SCHEDULES: list[dict[str, Any]] = [
    {},
    {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 50},
    {"trained_betas": [0.1, 0.2, 0.3, 0.4], "num_train_timesteps": 4},
    {"rescale_betas_zero_snr": True},
]


@pytest.mark.parametrize("fields", SCHEDULES)
def test_noise_is_added_as_the_scheduler_does(fields: dict) -> None:
    scheduler = DDIMScheduler(**fields)
    model = DDAEModel.from_diffusers(small_unet(), TAP, 1, scheduler=scheduler)
    t = torch.tensor([0, 3])
    x, eps = torch.rand(2, 3, 16, 16) * 2 - 1, torch.randn(2, 3, 16, 16)
    assert torch.equal(model.corruption(x, eps, t), scheduler.add_noise(x, eps, t))
    unet, xt = small_unet(), scheduler.add_noise(x, eps, t)
    seen = hooked(unet, TAP, lambda: unet(xt, t))
    with torch.no_grad():
        assert torch.equal(model(x, t, eps).last_hidden_state, tokens_of(seen))
        together = model.features(x, timesteps=[3], noise=eps)[TAP]
        assert torch.equal(together[0], model(x, torch.tensor([3]), eps).pooler_output)


def test_the_default_is_the_clean_input_and_deterministic() -> None:
    model = DDAEModel.from_diffusers(small_unet(dropout=0.5), TAP)
    images = draw_images()
    with torch.no_grad():
        first = model(images)
        assert torch.equal(first.last_hidden_state, model(images).last_hidden_state)
        clean = model(images, torch.tensor([10]), torch.zeros_like(images))
        noisy = model(images, torch.tensor([10]), torch.randn_like(images))
    torch.testing.assert_close(first.last_hidden_state, clean.last_hidden_state)
    assert not torch.allclose(first.last_hidden_state, noisy.last_hidden_state, atol=1e-3)
    assert first.last_hidden_state.shape == (3, 64, 16)
    assert torch.equal(first.pooler_output, first.last_hidden_state.mean(dim=1))
    assert len(model(images, return_dict=False)) == 2


@torch.no_grad()
def test_a_latent_network_sees_the_scaled_posterior_mean() -> None:
    unet, images = small_conditional_unet(), draw_images()
    prompt = torch.linspace(-1, 1, 5 * 12).view(5, 12)
    for fields in ({"scaling_factor": 0.5}, {"scaling_factor": 0.5, "shift_factor": 0.25, "use_quant_conv": False}):
        vae = small_vae(**fields)
        z = (vae.encode(images).latent_dist.mean - fields.get("shift_factor", 0)) * 0.5
        model = DDAEModel.from_diffusers(unet, TAP, vae=vae, empty_prompt=prompt)
        assert (model.config.image_size, model.config.num_channels, model.encode(images).shape) == (16, 3, z.shape)
        assert torch.equal(model.encode(images), z)
        seen = hooked(unet, TAP, lambda z=z: call(unet, gamma(10) * z, 10, prompt))
        assert torch.equal(model(images).last_hidden_state, tokens_of(seen))
        assert not [name for name in model.state_dict() if "decoder" in name or "post_quant" in name]
        assert not any(parameter.requires_grad for parameter in model.vae.parameters())


@torch.no_grad()
def test_networks_with_classes_are_told_the_null_class() -> None:
    unet = small_unet(num_class_embeds=4)
    with pytest.raises(ValueError, match=r"null_class=None is invalid; it must be from 0 to 3"):
        DDAEModel.from_diffusers(unet, TAP)
    model, x = DDAEModel.from_diffusers(unet, TAP, null_class=3), draw_input(unet)
    seen = hooked(unet, TAP, lambda: unet(gamma(10) * x, 10, class_labels=torch.tensor([3, 3])))
    assert torch.equal(model(x).last_hidden_state, tokens_of(seen))
    dit = DDAEModel.from_diffusers(small_dit(), null_class=2)
    assert dit.config.null_class == 2
    assert DDAEModel.from_diffusers(small_dit()).config.null_class == 10
    x = draw_input(small_dit())
    other = DDAEModel.from_diffusers(small_dit())(x).pooler_output
    assert not torch.allclose(dit(x).pooler_output, other, atol=1e-4)


def test_other_image_sizes_are_taken_where_asked_for() -> None:
    latent = DDAEModel.from_diffusers(small_dit(), vae=small_vae())
    assert latent(torch.zeros(1, 3, 16, 24), interpolate_pos_encoding=True).last_hidden_state.shape == (1, 24, 16)
    model = DDAEModel.from_diffusers(small_unet(), TAP)
    maps = model.features(torch.zeros(1, 3, 32, 24), pool="none", interpolate_pos_encoding=True)[TAP]
    assert maps.shape == (1, 1, 16, 16, 12)
    with pytest.raises(ValueError, match="pixel_values is 32x24; the model was made for image_size=16"):
        model(torch.zeros(1, 3, 32, 24))
    with pytest.raises(ValueError, match="pixel_values is 16x21; both must be multiples of 2"):
        model(torch.zeros(1, 3, 16, 21), interpolate_pos_encoding=True)
    with pytest.raises(ValueError, match="pixel_values has 4 channels; the model was made for num_channels=3"):
        model(torch.zeros(1, 4, 16, 16))


@pytest.mark.parametrize(
    "make",
    [
        lambda: DDAEModel.from_diffusers(small_unet("AttnDownBlock2D", "AttnUpBlock2D"), TAP),
        pytest.param(
            lambda: DDAEModel.from_diffusers(small_conditional_unet(), vae=small_vae()), marks=pytest.mark.slow
        ),
        lambda: DDAEModel.from_diffusers(small_dit(), vae=small_vae()),
        pytest.param(lambda: DDAEModel.from_diffusers(open_gates(LDAEModel(small_config()))), marks=pytest.mark.slow),
    ],
    ids=["unet", "conditional unet", "dit", "ldae"],
)
def test_it_compiles_in_one_piece_and_trains_with_checkpointing(make: Any) -> None:
    torch._dynamo.reset()
    model, images = make(), draw_images()
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="eager")(images).pooler_output
        torch.testing.assert_close(compiled, model(images).pooler_output)
    model.train()

    def gradients() -> dict[str, torch.Tensor]:
        model.zero_grad()
        model(images).last_hidden_state.square().mean().backward()
        return {
            name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.requires_grad
        }

    expected = gradients()
    assert all(gradient.isfinite().all() for gradient in expected.values())
    calls = []
    checkpoint = torch.utils.checkpoint.checkpoint
    model._set_gradient_checkpointing(
        gradient_checkpointing_func=lambda function, *args: (
            calls.append(function) or checkpoint(function, *args, use_reentrant=False)
        )
    )
    for name, gradient in gradients().items():
        torch.testing.assert_close(gradient, expected[name])
    assert calls, "nothing was checkpointed"


def test_a_loss_follows_the_labels() -> None:
    config = DDAEModel.from_diffusers(small_unet(), TAP).config
    config.num_labels = 3
    model = DDAEForImageClassification(config)
    outputs = model(draw_images(), labels=torch.tensor([0, 1, 2]))
    expected = torch.nn.functional.cross_entropy(outputs.logits, torch.tensor([0, 1, 2]))
    torch.testing.assert_close(outputs.loss, expected)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"feature_tap": "x"}, "feature_tap='x': DDAEConfig has no such field"),
        ({"feature_layr": "x"}, "did you mean 'feature_layer'"),
        (
            {"denoiser_type": "UVit2DModel"},
            "denoiser_type='UVit2DModel' is unknown; choose one of UNet2DModel, UNet2DC",
        ),
        (
            {"denoiser_type": "DiTTransformer2DModel"},
            "denoiser_config is missing; give the fields of DiTTransformer2DModel",
        ),
        ({"feature_timestep": 1000}, "feature_timestep=1000 is invalid; it must be from 0 to .* = 999"),
        ({"image_size": 36}, "image_size=36 is invalid; it must be a positive multiple of 8"),
        ({"num_channels": 1}, "num_channels=1 is invalid; it must be 3"),
        ({"null_class": 3}, "null_class=3 is invalid; it must be None"),
        ({"empty_prompt_length": 3}, "empty_prompt_length=3 is invalid; it must be None"),
        ({"vae_config": {"latent_channels": 8}, "image_size": 32}, "latent_channels are the network's in_channels=3"),
        ({"denoiser_config": {"block_out_channels": [8]}}, "image_size is missing, .* sample_size=None"),
        ({"denoiser_config": {"sample_size": "16"}}, "image_size is missing, .* sample_size='16'"),
        ({"denoiser_config": {"in_channels": [1, "a"]}}, "in_channels=.* of the network must be an integer"),
        ({"denoiser_config": {"sample_size": [16, 32]}}, r"image_size is missing, .* sample_size=\[16, 32\]"),
        (
            {"denoiser_config": {"sample_size": 32, "up_block_types": ["SkipUpBlock2D"]}},
            "unknown types of blocks, SkipUpBlock2D",
        ),
        ({"denoiser_config": {"sample_size": 32, "time_embedding_type": "fourier"}}, "time_embedding_type='fourier'"),
        ({"denoiser_config": {"sample_size": 32, "class_embed_type": "timestep"}}, "class_embed_type='timestep'"),
        ({"denoiser_type": "LDAEModel", "vae_config": {"latent_channels": 4}}, "must be None for an LDAEModel"),
        ({"denoiser_type": "LDAEModel", "denoiser_config": {"widht": 3}}, "LDAEConfig has no such field"),
    ],
)
def test_configurations_that_make_no_sense_are_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DDAEConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"denoiser_config": {"sample_size": 32, "act_fun": "relu"}},
            "denoiser_config has 'act_fun', .*did you mean 'act_f",
        ),
        ({"scheduler_config": {"beta_strat": 0.1}}, "scheduler_config has 'beta_strat', .*did you mean 'beta_start'"),
        ({"vae_config": {"latent_chanels": 3, "latent_channels": 3}}, "vae_config has 'latent_chanels'"),
    ],
)
def test_misspelt_fields_of_the_parts_are_refused(fields: dict, message: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        DDAEModel(DDAEConfig(**fields))


def test_the_paper_s_unet_is_the_default() -> None:
    assert DDAEConfig().num_train_timesteps == 1000
    assert torch.equal(DDPMScheduler().betas, DDPMScheduler(**DDAEConfig().scheduler_config).betas)
    with torch.device("meta"):
        whole = DDAEModel(DDAEConfig(feature_layer="last"))
    # 35.7M with its last norm (2 * 128) and convolution (128 * 3 * 3 * 3 + 3), which lie behind the last tap
    assert sum(parameter.numel() for parameter in whole.parameters()) == 35_746_307 - 256 - 3_459


def test_diffusers_is_not_among_the_imports_of_the_remote_code() -> None:
    for path in code_files("ddae"):
        assert "diffusers" not in get_imports(path), path.name
