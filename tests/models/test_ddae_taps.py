"""Every tap of every network: the cut network gives what a hook on the whole one sees, and ships nothing more."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from ldae import DDAEConfig, DDAEModel, LDAEModel
from ldae.models.features_ldae import tokens_of
from ldae.models.taps_ddae import block_ends
from tests.models.small_diffusers import (
    call,
    draw_input,
    gamma,
    hooked_all,
    small_conditional_unet,
    small_dit,
    small_unet,
    small_vae,
)
from tests.models.small_models import draw_corruption, draw_images, open_gates, small_config


T = 10
NETWORKS: dict[str, Any] = {
    "unet": small_unet,
    "unet with attention": lambda: small_unet("AttnDownBlock2D", "AttnUpBlock2D", layers_per_block=2),
    "unet that resamples by residual blocks": lambda: small_unet(
        "ResnetDownsampleBlock2D",
        "ResnetUpsampleBlock2D",
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        downsample_type="resnet",
        upsample_type="resnet",
        resnet_time_scale_shift="scale_shift",
    ),
    "unet without a middle": lambda: small_unet(mid_block_type=None),
    "unet without attention in the middle": lambda: small_unet(add_attention=False, center_input_sample=True),
    "conditional unet": small_conditional_unet,
    "conditional unet of other blocks": lambda: small_conditional_unet(
        down_block_types=("SimpleCrossAttnDownBlock2D", "ResnetDownsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D"),
    ),
    "conditional unet with a plain middle": lambda: small_conditional_unet(mid_block_type="UNetMidBlock2D"),
    "dit": small_dit,
}


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS.keys())
@torch.no_grad()
def test_every_tap_gives_what_a_hook_sees(make: Any) -> None:
    network = make()
    x = draw_input(network)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    whole = DDAEModel.from_diffusers(network, "last")
    taps = list(whole.feature_layers)
    together = whole.features(x, taps, [T, 500], pool="none")
    seen = {t: hooked_all(network, taps, lambda t=t: call(network, gamma(t) * x, t)) for t in (T, 500)}
    for tap, shape in whole.feature_layers.items():
        assert seen[T][tap].shape[1:] == shape, tap
        for index, t in enumerate((T, 500)):
            assert torch.equal(together[tap][index], seen[t][tap]), tap
    sizes = []
    for tap in taps[:: 2 if len(taps) > 8 else 1]:  # cutting a network costs as much as running it many times
        model, at_tap = DDAEModel.from_diffusers(network, tap), seen[T][tap]
        outputs = model(x)
        assert torch.equal(outputs.last_hidden_state, tokens_of(at_tap)), tap
        assert torch.equal(outputs.pooler_output, whole.features(x, [tap], [T])[tap][0]), tap
        mean = at_tap.flatten(2).mean(2) if at_tap.ndim == 4 else at_tap.mean(1)
        torch.testing.assert_close(outputs.pooler_output, mean)
        assert model.config.hidden_size == outputs.pooler_output.shape[1]
        assert list(model.feature_layers) == taps[: len(model.feature_layers)]
        sizes.append(count(model))
    assert sizes == sorted(set(sizes)), "each tap needs more than the one before it"
    assert sizes[-1] < count(network)
    assert before.keys() == network.state_dict().keys(), "the source was changed"
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize(
    ("make", "tap", "behind"),
    [
        (
            "unet with attention",
            "up_blocks.0.resnets.1",
            "up_blocks.0.attentions.1 up_blocks.0.attentions.2 up_blocks.0.resnets.2 up_blocks.0.upsamplers "
            "up_blocks.1 conv_norm_out conv_out",
        ),
        (
            "unet with attention",
            "mid_block.resnets.0",
            "mid_block.attentions mid_block.resnets.1 up_blocks conv_norm_out conv_out",
        ),
        (
            "unet with attention",
            "down_blocks.0.resnets.1",
            "down_blocks.0.downsamplers down_blocks.1 mid_block up_blocks conv_norm_out conv_out",
        ),
        ("dit", "transformer_blocks.1", "transformer_blocks.2 proj_out_1 proj_out_2"),
    ],
)
def test_a_cut_network_holds_all_before_its_tap_and_nothing_behind(make: str, tap: str, behind: str) -> None:
    network = NETWORKS[make]()
    parts = tuple(f"denoiser.{part}" for part in behind.split())
    whole = {f"denoiser.{name}" for name in network.state_dict()}
    assert all(any(name.startswith(part) for name in whole) for part in parts)
    expected = {name for name in whole if not name.startswith(parts)}
    assert set(DDAEModel.from_diffusers(network, tap).state_dict()) == expected


def test_names_are_those_of_the_modules_in_the_order_of_the_forward() -> None:
    model = DDAEModel.from_diffusers(small_unet("AttnDownBlock2D", "AttnUpBlock2D"), "last")
    assert list(model.feature_layers.items()) == [
        ("down_blocks.0.resnets.0", (8, 16, 16)),
        ("down_blocks.1.resnets.0", (16, 8, 8)),
        ("down_blocks.1.attentions.0", (16, 8, 8)),
        ("mid_block.resnets.0", (16, 8, 8)),
        ("mid_block.attentions.0", (16, 8, 8)),
        ("mid_block.resnets.1", (16, 8, 8)),
        ("up_blocks.0.resnets.0", (16, 8, 8)),
        ("up_blocks.0.attentions.0", (16, 8, 8)),
        ("up_blocks.0.resnets.1", (16, 8, 8)),
        ("up_blocks.0.attentions.1", (16, 8, 8)),
        ("up_blocks.1.resnets.0", (8, 16, 16)),
        ("up_blocks.1.resnets.1", (8, 16, 16)),
    ]
    assert block_ends(list(model.feature_layers))[-4:] == [
        "up_blocks.0.attentions.0",
        "up_blocks.0.attentions.1",
        "up_blocks.1.resnets.0",
        "up_blocks.1.resnets.1",
    ]


def test_defaults() -> None:
    attended = small_unet("AttnDownBlock2D", "AttnUpBlock2D", layers_per_block=3, block_out_channels=(8, 8))
    assert DDAEModel.from_diffusers(attended).config.feature_layer == "up_blocks.1.resnets.1"  # the 6th of 8
    assert DDAEModel.from_diffusers(small_unet()).config.feature_layer == "up_blocks.0.resnets.1"  # the middle of 4
    assert DDAEModel.from_diffusers(small_dit()).config.feature_layer == "transformer_blocks.1"  # the middle of 3
    assert DDAEModel.from_diffusers(small_dit()).config.feature_timestep == 10
    latent = DDAEModel.from_diffusers(small_dit(num_layers=28), vae=small_vae(), image_size=16)
    assert (latent.config.feature_layer, latent.config.feature_timestep) == ("transformer_blocks.13", 121)


@pytest.mark.parametrize(
    ("parametrization", "timestep", "small", "large"),
    [
        ("ddpm", 10, ("up_blocks.1.resnets.2", (256, 8, 8)), ("up_blocks.1.attentions.0", (256, 16, 16))),
        ("edm", 3, ("up_blocks.2.attentions.0", (256, 16, 16)), ("up_blocks.1.attentions.1", (256, 16, 16))),
    ],
)
def test_the_default_tap_of_the_papers_unets_is_the_public_codes(parametrization, timestep, small, large) -> None:
    """out_6 of a DDPM and out_7 of an EDM: up blocks with their attention, counted from 1."""
    recipe = Path(__file__).parents[2] / "training" / "recipes" / "ddae_cifar10_edm_large.yaml"
    for network, (tap, shape) in (
        (None, small),
        (yaml.safe_load(recipe.read_text())["model"]["denoiser_config"], large),
    ):
        with torch.device("meta"):
            model = DDAEModel(DDAEConfig(parametrization=parametrization, denoiser_config=network))
        assert (model.config.feature_layer, model.config.feature_timestep) == (tap, timestep)
        assert model.feature_layers[tap] == shape
        ends = [name for name in block_ends(list(model.feature_layers)) if name.startswith("up_blocks.")]
        assert ends.index(tap) == {"ddpm": 6, "edm": 7}[parametrization] - 1


def test_ddpms_noise_at_the_default_time_step_is_the_public_codes() -> None:
    """Its t = 11 counts from 1: index 10 of a table of 1000 betas from 1e-4 to 0.02."""
    model = DDAEModel.from_diffusers(small_unet())
    kept = (1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)[:11]).prod()
    assert model.config.feature_timestep == 10
    assert model.corruption.sigmas[10].item() == pytest.approx((1 - kept).sqrt().item(), abs=1e-5)
    assert model.corruption.sigmas[10].item() == pytest.approx(0.04683, abs=1e-5)


@pytest.mark.parametrize("name", ["up_blocks.1.resnets.7", "conv_in", "up_blocks"])
def test_an_unknown_tap_is_refused_with_the_list_of_all(name: str) -> None:
    with pytest.raises(
        ValueError, match=rf"feature_layer='{name}' is unknown.*down_blocks.0.resnets.0, .*up_blocks.1"
    ):
        DDAEModel.from_diffusers(small_unet(), name)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (
            {"layers": ["up_blocks.1.resnets.0"]},
            r"layers=\['up_blocks.1.resnets.0'\] must be one or more of down_blocks.0",
        ),
        ({"layers": []}, "layers=.. must be one or more"),
        ({"layers": ["mid_block.resnets.0"] * 2}, "each once"),
        ({"timesteps": [1, 1000]}, r"timesteps=\[1, 1000\] must be .* the numbers from 0 to 999"),
        ({"pool": "max"}, "pool='max' is unknown"),
    ],
)
def test_wrong_choices_of_features_are_refused(choice: dict, message: str) -> None:
    model = DDAEModel.from_diffusers(small_unet())
    with pytest.raises(ValueError, match=message):
        model.features(torch.zeros(1, 3, 16, 16), **choice)


def test_an_ldae_gives_its_own_features_at_each_of_its_blocks() -> None:
    images, (_, noise) = draw_images(), draw_corruption()
    source = open_gates(LDAEModel(small_config(), num_layers=3))
    default = DDAEModel.from_diffusers(source)
    assert (default.config.feature_layer, default.config.feature_timestep) == ("layers.1", 10)
    assert torch.equal(default(images).last_hidden_state, source(images).last_hidden_state)
    whole = DDAEModel.from_diffusers(source, "last", 20)
    assert whole.feature_layers == {f"layers.{i}": (16, 32) for i in range(3)}
    together = whole.features(images, list(whole.feature_layers), [20, 40], noise=noise, pool="none")
    hidden = source(images, torch.tensor([20]), noise, output_hidden_states=True).hidden_states
    for i in range(3):
        cut = DDAEModel.from_diffusers(source, f"layers.{i}", 20)
        assert len(cut.denoiser.layers) == i + 1
        expected = source.normalize(hidden[i + 1])
        assert torch.equal(cut(images, noise=noise).last_hidden_state, expected)
        assert torch.equal(together[f"layers.{i}"][0], expected)
