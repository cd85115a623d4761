"""Measure the share of a pre-training step that is spent waiting for data, from a run's own metrics.

The model is tiny (192 wide, 12 + 12 blocks) at 32/4, on streamed parquet files of 32x32 images with random crops:
those of CIFAR-10 if LDAE_CIFAR10 names their folder, otherwise random ones made here. Target: less than 5 %.

    python benchmarks/data.py [--steps 12] [--batch 32] [--workers 1]
"""

import argparse
import os
import statistics
import tempfile
from pathlib import Path

import torch
from harness import write_random_parquet
from transformers.utils.logging import disable_progress_bar

from ldae.training.pretraining import pretrain
from ldae.training.recipe import load_recipe


TARGET = 0.05
LAP = 2  # steps between two lines of the metrics; the first line, with the start of the workers, is left out


def measure(dataset: str, output_dir: Path, steps: int, batch: int, workers: int) -> list[dict]:
    """Train for `steps` steps, and return the lines of the metrics except the first."""
    on_gpu = torch.cuda.is_available()
    overrides = {
        "size": "tiny",
        "image_size": 32,
        "patch_size": 4,
        "latent_dim": 16,
        "dataset": dataset,
        "streaming": True,
        "num_workers": workers,
        "random_resized_crop": True,
        "output_dir": str(output_dir),
        "images": steps * batch,
        "total_batch_size": batch,
        "tokenizer_images": 512,
        "log_every_images": LAP * batch,
        "checkpoint_every_images": steps * batch,
        "probe_every_images": 0,
        "mixed_precision": "bf16" if on_gpu else "no",
        "compile": on_gpu,
    }
    folder = pretrain(load_recipe(None, overrides))
    return [record for record in folder.records() if record["event"] == "train"][1:]


def run(steps: int = 12, batch: int = 32, workers: int = 1) -> list[float]:
    """Measure, and print one line."""
    if steps < 2 * LAP:
        raise SystemExit(f"--steps {steps} is too few: the first {LAP} are not measured; give {2 * LAP} or more.")
    disable_progress_bar()
    dataset = os.environ.get("LDAE_CIFAR10")
    with tempfile.TemporaryDirectory() as folder:
        if dataset is None:
            dataset = str(write_random_parquet(Path(folder) / "images"))
        laps = measure(dataset, Path(folder) / "run", steps, batch, workers)
    waits = [lap["data_wait"] for lap in laps]
    speed = statistics.median(lap["images_per_second"] for lap in laps)
    median, worst = statistics.median(waits), max(waits)
    print(
        f"data wait tiny 32/4 batch {batch}, streamed {'CIFAR-10' if 'LDAE_CIFAR10' in os.environ else 'random'} "
        "parquet, "
        f"{workers} worker(s): {median:.2%} of a step (worst {worst:.2%} of {len(waits)} laps of {LAP} steps), "
        f"{speed:.0f} images/s, threads {torch.get_num_threads()}; "
        f"target under {TARGET:.0%} {'reached' if median < TARGET else 'MISSED'}",
        flush=True,
    )
    return waits


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    run(arguments.steps, arguments.batch, arguments.workers)
