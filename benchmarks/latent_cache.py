"""Compare a training step that reads cached latents with one that encodes its images, at equal batch.

The model is row 1 of the trajectory at 64 pixels: the whole autoencoder of latent diffusion (stride 8, 4 channels) in
front of denoisers of 12 + 12 blocks. The ratio of encoding to training does not depend on the image size, so it is
that of 256 pixels. Both sides are pre-training runs of the library, including data loading and optimizer. Target: 2x.

    python benchmarks/latent_cache.py [--pairs N]
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from harness import Comparison, compare, write_random_parquet
from transformers.utils.logging import disable_progress_bar

from ldae.models.tokenizer_ldae import build_conv_vae
from ldae.processes import make_accelerator
from ldae.training.loop import Run
from ldae.training.pretraining import DenoisingTask
from ldae.training.recipe import Recipe, load_recipe
from ldae.training.run_folder import RunFolder


CASES = [("tiny", 9), ("small", 7)]  # size, timed pairs
IMAGES, BATCH = 16, 4


def make_recipe(folder: Path, size: str, name: str, latent_cache: Path | None) -> Recipe:
    fields = {
        "size": size,
        "image_size": 64,
        "patch_size": 16,
        "latent_tokenizer": "conv_vae",
        "latent_dim": 16,
        "noise_schedule": "linear_beta",
        "input_space": "latent",
        "prediction_target": "noise",
        "loss_weighting": "uniform",
        "dataset": str(folder / "images"),
        "cache_dir": str(folder / "prepared"),
        "horizontal_flip": True,
        "num_workers": 0,
        "tokenizer": str(folder / "autoencoder"),
        "tokenizer_images": IMAGES,
        "output_dir": str(folder / f"{name}_{size}"),
        "total_batch_size": BATCH,
        "probe_every_images": 0,
        "latent_cache": None if latent_cache is None else str(latent_cache),
    }
    return load_recipe(None, fields)


def step_of(recipe: Recipe) -> Callable[[], None]:
    accelerator = make_accelerator(mixed_precision=recipe.training.mixed_precision)
    run = Run(DenoisingTask(recipe), recipe.training, RunFolder.from_recipe(recipe), (), accelerator)
    batches = run.start()
    return lambda: run.step(batches)


def run(pairs: int | None = None) -> list[Comparison]:
    """Compare every case; the sizes share the cache."""
    disable_progress_bar()
    torch.manual_seed(0)
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_random_parquet(folder / "images", shards=1, rows=IMAGES)
        for size, default_pairs in CASES:
            encoding = make_recipe(folder, size, "encoding", None)
            if not results:
                build_conv_vae(encoding.model_config()).save_pretrained(folder / "autoencoder")
            peer = step_of(encoding)
            start = time.perf_counter()
            ours = step_of(make_recipe(folder, size, "cached", folder / "latents"))
            if not results:
                seconds = time.perf_counter() - start
                print(
                    f"latent cache: started and filled with {IMAGES} images and their mirror images in {seconds:.1f} s"
                )
            title = f"training from cached latents, {size}, 64 pixels, batch {BATCH}"
            results.append(compare(title, ours, peer, pairs=pairs or default_pairs, target=2.0))
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, help="timed pairs of every case")
    run(parser.parse_args().pairs)
