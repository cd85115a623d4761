"""Compare a diffusion network that ends at a tap in the middle of its up path (DDAEModel) with the whole forward.

The target follows from the counted floating-point operations: the cut network takes at most its share of the whole
forward, plus 5 % of it, which is a ratio of 1 / (share + 0.05).

    python benchmarks/truncation.py [--pairs N]
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from harness import Comparison, compare
from torch.utils.flop_counter import FlopCounterMode

from ldae import DDAEModel
from ldae.models.configuration_ddae import PAPER_UNET


ALLOWANCE = 0.05
# A quarter of Stable Diffusion's UNet in width, with its blocks and 64 tokens of a prompt.
LATENT_UNET: dict[str, Any] = {
    "sample_size": 32,
    "block_out_channels": (80, 160, 320, 320),
    "cross_attention_dim": 192,
    "norm_num_groups": 16,
}
# name, network, its fields, batch, timed pairs
CASES = [
    ("35.7M UNet of the paper, 32 x 32", UNet2DModel, PAPER_UNET, 8, 9),
    ("UNet with prompts, 32 x 32 latents", UNet2DConditionModel, LATENT_UNET, 2, 9),
]


def count_flops(call: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def forwards(kind: type, fields: dict[str, Any], batch: int) -> tuple[str, Callable[[], Any], Callable[[], Any]]:
    """Return the tap in the middle of the up path, the forward that ends there, and the whole one, on one input."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    network = kind(**fields).eval().to(device)
    conditional = isinstance(network, UNet2DConditionModel)
    prompt = torch.randn(64, network.config.cross_attention_dim) if conditional else None
    model = DDAEModel.from_diffusers(network, empty_prompt=prompt)
    x = torch.rand(
        batch, network.config.in_channels, network.config.sample_size, network.config.sample_size, device=device
    )
    timesteps = torch.full((batch,), model.config.feature_timestep, device=device)
    conditions = {} if prompt is None else {"encoder_hidden_states": prompt.to(device).expand(batch, -1, -1)}

    @torch.no_grad()
    def ours() -> Any:
        return model(x).pooler_output

    @torch.no_grad()
    def peer() -> Any:
        return network(x, timesteps, **conditions).sample

    return str(model.config.feature_layer), ours, peer


def run(pairs: int | None = None) -> list[Comparison]:
    """Compare every case."""
    results = []
    for name, kind, fields, batch, default_pairs in CASES:
        tap, ours, peer = forwards(kind, fields, batch)
        share = count_flops(ours) / count_flops(peer)
        print(f"{name}: the network up to {tap} takes {share:.1%} of the operations", flush=True)
        target = 1 / (share + ALLOWANCE)
        results.append(compare(f"{name}, batch {batch}", ours, peer, pairs=pairs or default_pairs, target=target))
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, help="timed pairs of every case")
    run(parser.parse_args().pairs)
