"""Compare a training step of l-DAE's DiT (row 0 of the trajectory) with diffusers' DiTTransformer2DModel.

Both have the same width, depth, heads, tokens, 1000 class labels and batch, and the same latents of an autoencoder
(encoding is the same on both sides, and left out). Both draw time steps and noise, corrupt, drop a tenth of the
labels, predict the noise, compute the mean square, run the backward pass and take a fused AdamW step. Ours conditions
the blocks through one MLP of a quarter of the width, computed once (App. A); each of DiT's blocks has its own
embedders. Targets: 1.05x, and 35 % fewer weights.

    python benchmarks/dit.py [--pairs N]
"""

import argparse
from collections.abc import Callable

import torch
from diffusers import DDPMScheduler, DiTTransformer2DModel
from harness import Comparison, compare
from torch import nn
from training_step import step_of

from ldae import LDAEConfig, LDAEForPreTraining, patchify


CLASSES, CHANNELS, LATENT_PATCH, STRIDE = 1000, 4, 2, 8  # of the paper's autoencoder: 4 channels at stride 8, d = 16
SMALLER = 0.35
# name, width, blocks, heads, side of the latent map, batch, timed pairs
CASES = [
    ("S", 384, 12, 6, 16, 8, 9),
    ("S", 384, 12, 6, 32, 8, 7),
    ("B", 768, 12, 12, 16, 8, 6),
]


def build_models(width: int, blocks: int, heads: int, side: int) -> tuple[LDAEForPreTraining, DiTTransformer2DModel]:
    """Build both untrained models. Our tokenizer is a stub of the right shape, because latents are given."""
    torch.manual_seed(0)
    config = LDAEConfig(
        image_size=side * STRIDE,
        patch_size=LATENT_PATCH * STRIDE,
        hidden_size=width,
        num_hidden_layers=blocks // 2,
        decoder_num_hidden_layers=blocks - blocks // 2,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        latent_tokenizer="conv_vae",
        latent_dim=CHANNELS * LATENT_PATCH**2,
        conv_vae_config={"block_out_channels": [8, 8, 8, 8], "layers_per_block": 1, "norm_num_groups": 8},
        noise_schedule="linear_beta",
        input_space="latent",
        prediction_target="noise",
        loss_weighting="uniform",
        num_class_embeds=CLASSES,
    )
    peer = DiTTransformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=width // heads,
        in_channels=CHANNELS,
        num_layers=blocks,
        sample_size=side,
        patch_size=LATENT_PATCH,
        num_embeds_ada_norm=CLASSES,
        norm_eps=1e-6,
    )
    return LDAEForPreTraining(config).train(), peer.train()


def our_loss(model: LDAEForPreTraining, maps: torch.Tensor, labels: torch.Tensor) -> Callable[[], torch.Tensor]:
    latents, positions = patchify(maps, LATENT_PATCH), torch.arange(len(maps), device=maps.device)

    def loss() -> torch.Tensor:
        timesteps, noise = model.draw_corruption(positions, seed=0)
        kept = model.drop_labels(labels, positions, seed=0)
        positions.add_(len(maps))
        return model(None, timesteps, noise, kept, latents=latents).loss

    return loss


def peer_loss(model: DiTTransformer2DModel, maps: torch.Tensor, labels: torch.Tensor) -> Callable[[], torch.Tensor]:
    scheduler = DDPMScheduler()

    def loss() -> torch.Tensor:
        timesteps = torch.randint(0, scheduler.config.num_train_timesteps, (len(maps),), device=maps.device)
        noise = torch.randn_like(maps)
        prediction = model(scheduler.add_noise(maps, noise, timesteps), timesteps, labels).sample
        return nn.functional.mse_loss(prediction, noise)

    return loss


def count(model: nn.Module) -> int:
    """Count the weights without the tokenizer's."""
    return sum(p.numel() for name, p in model.named_parameters() if ".tokenizer." not in name)


def run(pairs: int | None = None) -> list[Comparison]:
    """Compare every case."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    results = []
    for size, width, blocks, heads, side, batch, default_pairs in CASES:
        models = build_models(width, blocks, heads, side)
        ours, peer = (model.to(device) for model in models)
        maps = torch.randn(batch, CHANNELS, side, side, device=device)
        labels = torch.arange(batch, device=device)
        steps = step_of(ours, our_loss(ours, maps, labels)), step_of(peer, peer_loss(peer, maps, labels))
        name = f"DiT-{size} step, {(side // LATENT_PATCH) ** 2} tokens, batch {batch}"
        results.append(compare(name, *steps, pairs=pairs or default_pairs, target=1.05))
        fewer = 1 - count(ours) / count(peer)
        print(
            f"DiT-{size} weights: ours {count(ours) / 1e6:.1f} M, peer {count(peer) / 1e6:.1f} M, {fewer:.1%} fewer; "
            f"target {SMALLER:.0%} {'reached' if fewer >= SMALLER else 'MISSED'}",
            flush=True,
        )
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, help="timed pairs of every case")
    run(parser.parse_args().pairs)
