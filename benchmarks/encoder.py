"""Compare the encoder's forward at a fixed t with transformers' IJepaModel of the same size, eager and compiled.

Both run the same attention (sdpa) and activation on the same images without gradients. Ours also computes the PCA and
its inverse, the conditioning on t, and the mean over tokens. Target: the interval reaches 1.0x.

    python benchmarks/encoder.py [--pairs N]
"""

import argparse
from collections.abc import Callable

import torch
from harness import Comparison, compare
from transformers import IJepaConfig, IJepaModel

from ldae import LDAEConfig, LDAEModel


# size, image size, patch size, batch, timed pairs
CASES = [("tiny", 32, 4, 64, 15), ("base", 256, 16, 4, 9)]


def build_models(size: str, image_size: int, patch_size: int) -> tuple[LDAEModel, IJepaModel]:
    """Build an encoder with its gates drawn at random, and its peer of the same size."""
    torch.manual_seed(0)
    config = LDAEConfig.from_size(size, image_size=image_size, patch_size=patch_size, latent_dim=16)
    ours = LDAEModel(config).eval()
    for name, parameter in ours.named_parameters():
        if "modulation" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    peer = ijepa_like(config, config.num_hidden_layers).eval()
    return ours, peer


def ijepa_like(config: LDAEConfig, num_hidden_layers: int) -> IJepaModel:
    """Build an untrained IJepaModel with a configuration's width, heads, activation, image and patch size.

    It is transformers' own ViT without class token, as l-DAE's transformer is.
    """
    return IJepaModel(
        IJepaConfig(
            image_size=config.image_size,
            patch_size=config.patch_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            intermediate_size=config.intermediate_size,
            hidden_act=config.hidden_act,
        )
    )


def run(pairs: int | None = None) -> list[Comparison]:
    """Compare every case, eager and compiled."""
    results = []
    for size, image_size, patch_size, batch, default_pairs in CASES:
        ours, peer = build_models(size, image_size, patch_size)
        assert ours.config._attn_implementation == peer.config._attn_implementation == "sdpa"
        images = torch.rand(batch, 3, image_size, image_size) * 2 - 1
        for mode in ("eager", "compiled"):
            calls = [forward_of(model if mode == "eager" else torch.compile(model), images) for model in (ours, peer)]
            name = f"encoder {size} {image_size}/{patch_size} batch {batch} {mode}"
            results.append(compare(name, *calls, pairs=pairs or default_pairs, target=1.0))
    return results


def forward_of(model: Callable, images: torch.Tensor) -> Callable[[], torch.Tensor]:
    def forward() -> torch.Tensor:
        with torch.no_grad():
            return model(images).last_hidden_state

    return forward


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, help="timed pairs of every case")
    run(parser.parse_args().pairs)
