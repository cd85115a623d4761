"""Compare the extraction of features to a table with the bare forward on the same, already decoded batches.

The model is tiny (12 blocks, 192 wide) at 32/4, on parquet files of PNG images, decoded by one worker. Ours is all of
`extract_table`: it opens the folder, compares model and images with its record, decodes, computes and writes. Target:
the interval reaches 0.95x.

Then the peak memory of 10,000 and of 100,000 streamed images is compared, each in its own process. This uses a nano
model at 8/4, so that it takes a minute instead of an hour; only the pipeline could use more memory with more images,
and it is the same. Target: less than 5 % more.

    python benchmarks/extraction.py [--pairs N] [--images N] [--skip_memory]
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from datasets import disable_progress_bars
from harness import Comparison, compare, write_random_parquet

from ldae import LDAEConfig, LDAEModel
from ldae.data import DataConfig, ImageSource, iterate_once, open_images
from ldae.extraction.reader import FeatureReader
from ldae.extraction.table import extract_table


TARGET, MEMORY_TARGET = 0.95, 1.05
BATCH = 64
FEW, MANY = 10_000, 100_000  # images between which memory must not grow


def make_reader(size: str, image_size: int) -> FeatureReader:
    config = LDAEConfig.from_size(size, image_size=image_size, patch_size=4, latent_dim=16)
    return FeatureReader(LDAEModel(config), torch.zeros(1, 3, image_size, image_size))


def compare_speed(folder: Path, images: int, pairs: int) -> Comparison:
    data = write_random_parquet(folder / "images", 1, images, rows_per_group=256)
    source = open_images(DataConfig(str(data), cache_dir=str(folder / "prepared")))
    reader, table = make_reader("tiny", 32), folder / "table"
    batches = [b.images / 127.5 - 1 for b in iterate_once(source, image_size=32, batch_size=BATCH)]
    name = f"extraction tiny 32/4 batch {BATCH}, {images} images from parquet"
    return compare(name, extraction_of(reader, source, table), forward_of(reader, batches), pairs=pairs, target=TARGET)


def extraction_of(reader: FeatureReader, source: ImageSource, table: Path):
    def extract() -> None:
        shutil.rmtree(table, ignore_errors=True)
        extract_table(reader, source, table, batch_size=BATCH, num_workers=1)

    return extract


def forward_of(reader: FeatureReader, batches: list[torch.Tensor]):
    def forward() -> None:
        with torch.no_grad():
            for batch in batches:
                reader.encoder.module(batch)

    return forward


def measure_memory(folder: Path, images: int) -> dict[str, float]:
    """Measure the memory in MiB of a process that extracts so many images: before the first image, and at the peak."""
    reader = make_reader("nano", 8)
    source = open_images(DataConfig(str(folder / "*.parquet"), streaming=True))
    before, start = peak_mib(), time.perf_counter()
    done = extract_table(reader, source, folder / f"table_{images}", batch_size=256, num_workers=1)
    assert done.noted["rows"] == images
    return {"before": before, "peak": peak_mib(), "images_per_second": images / (time.perf_counter() - start)}


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def compare_memory(folder: Path) -> float:
    """Measure both, print one line, and return the ratio of the peaks."""
    files = write_random_parquet(folder / "small", 1, FEW, side=8, rows_per_group=256)
    (first,) = files.iterdir()
    found = []
    for images in (FEW, MANY):
        for i in range(1, images // FEW):
            os.link(first, files / f"train-{i:05d}.parquet")
        command = [sys.executable, __file__, "--measure", str(files), str(images)]
        found.append(json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout))
    few, many = found
    ratio = many["peak"] / few["peak"]
    print(
        f"extraction memory nano 8/4, streamed: peak {few['peak']:.0f} MiB with {FEW:,} images (of which "
        f"{few['before']:.0f} before the first), {many['peak']:.0f} MiB with {MANY:,}, {ratio:.3f} of it; "
        f"{many['images_per_second']:.0f} images/s; target below {MEMORY_TARGET:.2f} "
        f"{'reached' if ratio < MEMORY_TARGET else 'MISSED'}",
        flush=True,
    )
    return ratio


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--images", type=int, default=512, help="in each timed extraction")
    parser.add_argument("--skip_memory", action="store_true")
    parser.add_argument("--measure", nargs=2, metavar=("FOLDER", "IMAGES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    disable_progress_bars()
    if arguments.measure:
        print(json.dumps(measure_memory(Path(arguments.measure[0]), int(arguments.measure[1]))))
    else:
        with tempfile.TemporaryDirectory() as directory:
            compare_speed(Path(directory), arguments.images, arguments.pairs)
            if not arguments.skip_memory:
                compare_memory(Path(directory))
