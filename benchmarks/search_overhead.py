"""Compare a search of all blocks and nine time steps with the bare forwards that it needs, for a nano model.

    python benchmarks/search_overhead.py [--pairs N] [--images N]

Ours extracts, pools, fits ridge probes in closed form and scores them; the peer runs the same network on the same
images at the same time steps and drops its output. Target: a ratio of 1 / 1.3 or more, which is at most 30 % over the
forwards.
"""

import argparse
from typing import Any

import torch
from harness import Comparison, compare

from ldae import LDAEConfig, LDAEForPreTraining
from ldae.data import Batch
from ldae.evaluation.encoder import evaluating
from ldae.evaluation.features import centre_crop
from ldae.evaluation.search import search_features
from ldae.evaluation.untrained import untrained_like


IMAGES, CLASSES, BATCH = 6000, 10, 256
TARGET = 1 / 1.3


def run(pairs: int | None = None, images: int = IMAGES) -> list[Comparison]:
    """Compare the whole search with its forwards; a sixth of the images is the test set."""
    config = LDAEConfig.from_size("nano", image_size=32, patch_size=4, latent_dim=16)
    model: Any = untrained_like(LDAEForPreTraining(config), seed=0)
    pixels = torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8)
    labels = torch.randint(0, CLASSES, (images,))
    batches = [Batch(pixels[part], part, labels[part]) for part in torch.arange(images).split(BATCH)]
    test = batches[: len(batches) // 6]
    prepare, timesteps = centre_crop(config.image_size), config.search_timesteps

    def forwards() -> None:
        with evaluating(model):
            for batch in [*batches[len(test) :], *test]:
                prepared = prepare(batch.images, batch.positions)
                for t in timesteps:
                    model.ldae(prepared, torch.tensor([t]), output_hidden_states=[4])

    def search() -> None:
        search_features(model, batches[len(test) :], test)

    return [compare(f"search, nano, {images} images", search, forwards, pairs=pairs or 6, target=TARGET)]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, help="timed pairs")
    parser.add_argument("--images", type=int, default=IMAGES)
    arguments = parser.parse_args()
    run(arguments.pairs, arguments.images)
