"""Compare a pre-training step with that of a bare transformers ViT of the same total depth and width.

Ours draws its corruption, corrupts, predicts, computes the loss, runs the backward pass and steps. The peer, an
IJepaModel with the blocks of encoder and decoder together, computes the mean square of its output, runs the backward
pass and steps. Both use fused AdamW, the same attention (sdpa) and activation, and the same images. Target: 0.9x.

    python benchmarks/training_step.py [--pairs N]
"""

import argparse
from collections.abc import Callable

import torch
from encoder import ijepa_like
from harness import Comparison, compare
from transformers import IJepaModel, PreTrainedModel

from ldae import LDAEConfig, LDAEForPreTraining


# size, image size, patch size, batch, timed pairs
CASES = [("tiny", 32, 4, 64, 9), ("base", 256, 16, 4, 7)]


def build_models(size: str, image_size: int, patch_size: int) -> tuple[LDAEForPreTraining, IJepaModel]:
    """Build the whole untrained denoiser, and its peer of the same total depth and width."""
    torch.manual_seed(0)
    config = LDAEConfig.from_size(size, image_size=image_size, patch_size=patch_size, latent_dim=16)
    peer = ijepa_like(config, config.total_num_hidden_layers)
    return LDAEForPreTraining(config).train(), peer.train()


def our_loss(model: LDAEForPreTraining, images: torch.Tensor) -> Callable[[], torch.Tensor]:
    positions = torch.arange(len(images))

    def loss() -> torch.Tensor:
        timesteps, noise = model.draw_corruption(positions, seed=0)
        positions.add_(len(images))
        return model(images, timesteps, noise).loss

    return loss


def peer_loss(model: IJepaModel, images: torch.Tensor) -> Callable[[], torch.Tensor]:
    return lambda: model(images).last_hidden_state.square().mean()


def step_of(model: PreTrainedModel, loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def run(pairs: int | None = None) -> list[Comparison]:
    """Compare every case."""
    results = []
    for size, image_size, patch_size, batch, default_pairs in CASES:
        ours, peer = build_models(size, image_size, patch_size)
        assert ours.config._attn_implementation == peer.config._attn_implementation == "sdpa"
        images = torch.rand(batch, 3, image_size, image_size) * 2 - 1
        steps = step_of(ours, our_loss(ours, images)), step_of(peer, peer_loss(peer, images))
        name = f"training step {size} {image_size}/{patch_size} batch {batch}"
        results.append(compare(name, *steps, pairs=pairs or default_pairs, target=0.9))
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, help="timed pairs of every case")
    run(parser.parse_args().pairs)
