"""Compare training with idle threads that soon sleep, as `ldae` sets it, with GNU OpenMP's own waiting.

Both train the quick start's recipe with torch's threads, alone and beside a process that keeps one core busy. What is
compared are images per second without start and end, of runs in turn. Above 1, sleeping is faster.

    python benchmarks/idle_threads.py [--pairs N] [--images N]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from harness import median_interval


SETTINGS = {
    "soon": {"GOMP_SPINCOUNT": "10000"},
    "own": {"GOMP_SPINCOUNT": "300000"},
}  # the second is libgomp's default
QUIET = ["--select_features", "false", "--probe_every_images", "0", "--num_workers", "0", "--warmup_images", "0"]


def images_per_second(images: int, **environment: str) -> float:
    """Return the rate of the last logged part of a run of `images` images, which logs eight times."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "ldae_cli", "pretrain", "--config", "digits", "--output_dir", folder, *QUIET]
        command += ["--images", str(images), "--log_every_images", str(images // 8)]
        subprocess.run(command, env={**os.environ, **environment}, check=True, capture_output=True)
        lines = map(json.loads, (Path(folder) / "metrics.jsonl").read_text().splitlines())
        rates = [line["images_per_second"] for line in lines if line["event"] == "train"]
    return sum(rates[1:]) / len(rates[1:])


def compare(name: str, pairs: int, images: int) -> None:
    """Print the ratio of the two rates, as `harness.compare` does."""
    rates = []
    for pair in range(pairs):
        order = list(SETTINGS)[:: 1 if pair % 2 else -1]
        measured = {setting: images_per_second(images, **SETTINGS[setting]) for setting in order}
        rates.append((measured["soon"], measured["own"]))
    low, high = median_interval([soon / own for soon, own in rates])
    soon, own = sorted(rates, key=lambda rate: rate[0] / rate[1])[len(rates) // 2]
    print(f"{name}: {soon / own:.2f}x [{low:.2f}, {high:.2f}] of {pairs} pairs; {soon:.0f} against {own:.0f} images/s")


def main(pairs: int, images: int) -> None:
    compare("idle threads that sleep, alone", pairs, images)
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        compare("idle threads that sleep, beside a busy process", pairs, images)
    finally:
        busy.kill()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--images", type=int, default=4000)
    arguments = parser.parse_args()
    main(arguments.pairs, arguments.images)
