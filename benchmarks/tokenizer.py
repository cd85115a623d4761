"""Measure the share of a pre-training step that a linear tokenizer takes: draw noise, encode, corrupt, decode.

The model is the standard l-DAE, base (12 + 12 blocks of width 768) at 256/16 with d = 32. The whole step draws its
corruption, predicts, computes the loss, runs the backward pass and takes a fused AdamW step. Target: under 3 %, so the
step takes at least 33.3x the time.

    python benchmarks/tokenizer.py [--pairs N]
"""

import argparse

import torch
from harness import Comparison, compare
from training_step import our_loss, step_of

from ldae import LDAEConfig, LDAEForPreTraining


SHARE = 0.03
BATCH = 2  # a larger one would spend a smaller share on the optimizer, and take a minute longer


def run(pairs: int = 6) -> Comparison:
    """Compare the tokenizer's part with the whole step."""
    torch.manual_seed(0)
    model = LDAEForPreTraining(LDAEConfig.from_size("base", image_size=256, patch_size=16, latent_dim=32)).train()
    images = torch.rand(BATCH, 3, 256, 256) * 2 - 1
    positions = torch.arange(BATCH)

    def tokenizer_part() -> torch.Tensor:
        with torch.no_grad():  # as in the step: nothing before the blocks has a gradient
            timesteps, noise = model.draw_corruption(positions, seed=0)
            zt = model.ldae.corruption(model.ldae.encode(images), noise, timesteps)  # (B, N, d)
            return model.ldae.blocks_input(zt)  # (B, N, D)

    result = compare(
        f"whole step / linear tokenizer, base 256/16, d 32, batch {BATCH}",
        tokenizer_part,
        step_of(model, our_loss(model, images)),
        pairs=pairs,
        target=1 / SHARE,
        min_seconds=0,  # the step is long, so each pair times one call of each
    )
    share = 1 / result.median
    print(
        f"linear tokenizer: encode + corrupt + decode take {share:.2%} of a step [{1 / result.high:.2%}, "
        f"{1 / result.low:.2%}]; target under {SHARE:.0%} {'reached' if share < SHARE else 'MISSED'}",
        flush=True,
    )
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=6)
    run(parser.parse_args().pairs)
