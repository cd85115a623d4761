"""Tiny networks of diffusers with random weights, and what hooks on them see."""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel
from torch import nn


LEVELS: dict[str, Any] = {"block_out_channels": (8, 16), "norm_num_groups": 4}


def small_unet(down: str = "DownBlock2D", up: str = "UpBlock2D", **fields: Any) -> UNet2DModel:
    """16 x 16 pixels, widths 8 and 16; the inner level has the given blocks."""
    torch.manual_seed(0)
    small: dict[str, Any] = {
        "sample_size": 16,
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", down),
        "up_block_types": (up, "UpBlock2D"),
        **LEVELS,
    }
    return UNet2DModel(**(small | fields)).eval()


def small_conditional_unet(**fields: Any) -> UNet2DConditionModel:
    """8 x 8 latents of 4 channels, prompts of width 12."""
    torch.manual_seed(1)
    small: dict[str, Any] = {
        "sample_size": 8,
        "layers_per_block": 1,
        "cross_attention_dim": 12,
        "attention_head_dim": 2,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        **LEVELS,
    }
    return UNet2DConditionModel(**(small | fields)).eval()


def small_dit(**fields: Any) -> DiTTransformer2DModel:
    """8 x 8 latents of 4 channels in patches of 2, 10 classes, 3 blocks of width 16."""
    torch.manual_seed(2)
    small: dict[str, Any] = {
        "sample_size": 8,
        "num_layers": 3,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_embeds_ada_norm": 10,
        "norm_num_groups": 4,
    }
    return DiTTransformer2DModel(**(small | fields)).eval()


def small_vae(**fields: Any) -> AutoencoderKL:
    """Stride 2, 4 latent channels: 16 x 16 pixels are 8 x 8 latents."""
    torch.manual_seed(3)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return AutoencoderKL(**(blocks | LEVELS | {"latent_channels": 4} | fields)).eval()


def gamma(t: int) -> torch.Tensor:
    """The scale of a clean input at t, by diffusers' own default schedule."""
    return DDPMScheduler().alphas_cumprod[t].sqrt()


def hooked(network: nn.Module, tap: str, run: Callable[[], Any]) -> torch.Tensor:
    """Return what a hook on one module of a network sees while `run` calls the network."""
    return hooked_all(network, [tap], run)[tap]


@torch.no_grad()
def hooked_all(network: nn.Module, taps: list[str], run: Callable[[], Any]) -> dict[str, torch.Tensor]:
    """Return what hooks on several modules of a network see while `run` calls the network once."""
    seen: dict[str, torch.Tensor] = {}

    def hook(tap: str) -> Any:
        def record(module: nn.Module, args: Any, out: Any) -> None:
            seen.setdefault(tap, out[0] if isinstance(out, tuple) else out)

        return network.get_submodule(tap).register_forward_hook(record)

    hooks = [hook(tap) for tap in taps]
    run()
    for each in hooks:
        each.remove()
    return seen


def call(network: nn.Module, xt: torch.Tensor, t: int, prompt: torch.Tensor | None = None) -> torch.Tensor:
    """Run the forward of any of these networks, with a DiT's null class, and a prompt `(L, D)` of zeros by default."""
    timesteps = torch.full((len(xt),), t)
    if isinstance(network, DiTTransformer2DModel):
        return network(xt, timesteps, torch.full((len(xt),), network.config.num_embeds_ada_norm)).sample
    if isinstance(network, UNet2DConditionModel):
        prompt = torch.zeros(1, network.config.cross_attention_dim) if prompt is None else prompt
        return network(xt, timesteps, prompt.to(xt).expand(len(xt), -1, -1)).sample
    return network(xt, timesteps).sample


def draw_input(network: nn.Module, batch: int = 2) -> torch.Tensor:
    """Images or latents of the network's size in [-1, 1]."""
    side, channels = network.config.sample_size, network.config.in_channels
    return torch.rand(batch, channels, side, side, generator=torch.Generator().manual_seed(4)) * 2 - 1
