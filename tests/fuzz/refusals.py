"""`python -m tests.fuzz.refusals`: forty wrong inputs, with the exit status and all that stands on stderr."""

import json
import os
import shutil
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import datasets
import torch
import yaml
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from ldae.cli import main
from ldae.training.recipe import recipes_folder
from tests.data.image_files import odd_images
from tests.processes import forget_processes

from . import ground as grounds
from .commands import PRESET


ON_DATA = "--dataset data --num_workers 0 --cache_dir cache"
WRONG = (
    "pretrian --config recipe.yaml",
    "pretrain --config recipe.yml",
    "pretrain --config recipe.yaml --output_dir out --imagse 64",
    "pretrain --config recipe.yaml --output_dir out --images 0",
    "pretrain --config recipe.yaml --output_dir out --seed abc",
    "pretrain --config recipe.yaml --output_dir out --base_learning_rate nan",
    "pretrain --config recipe.yaml --output_dir image.png/out",
    "pretrain --config recipe.yaml --output_dir out --num_workers 1000000000",
    "pretrain --config recipe.yaml --output_dir out --dataset ./date",
    "pretrain --config twice.yaml --output_dir out",
    "pretrain --config tabs.yaml --output_dir out",
    "pretrain --config latin.yaml --output_dir out",
    "pretrain --config base.yaml --output_dir out",
    "pretrain --config recipe.yaml --output_dir out --latent_dim 400",
    "train_tokenizer --config recipe.yaml",
    "finetune rnu",
    f"finetune run {ON_DATA} --rand_augment 11",
    "deconstruct --config preset.yaml --output_dir out --rows 99",
    f"linear_probe run {ON_DATA} --layers 9",
    f"linear_probe run {ON_DATA} --probe ridge",
    f"grid_search run {ON_DATA} --noisy maybe",
    f"knn run {ON_DATA} --k 0",
    f"knn run {ON_DATA} --k",
    f"knn run {ON_DATA} --device cuda:9",
    f"knn run {ON_DATA} --timesteps 1000",
    f"knn nan {ON_DATA}",
    f"knn cut {ON_DATA}",
    f"knn wide {ON_DATA}",
    f"knn json {ON_DATA}",
    f"knn run {ON_DATA} --output_dir broken",
    "knn run --dataset empty",
    f"compare {ON_DATA}",
    f"alignment run {ON_DATA} --seeds 0,0",
    f"checkpoint_sweep encoder {ON_DATA}",
    f"extract_features run {ON_DATA}",
    f"extract_features run {ON_DATA} --split tset --output_dir out",
    "search table truncated.jpg",
    "search run image.png",
    "generate run --num_images 2 --samplers ddim:x",
    "export run --format onxx --output_dir out",
)


def write_wrong(folder: Path) -> None:
    """Write the damaged files that the commands name, beside copies of the sound ones."""
    text = (folder / "recipe.yaml").read_text()
    (folder / "twice.yaml").write_text(text + yaml.safe_dump({"data": {"dataset": "digits"}}))
    (folder / "tabs.yaml").write_text(text.replace("  images", "\timages"))
    (folder / "latin.yaml").write_bytes(b"# caf\xe9\n" + text.encode())
    (folder / "base.yaml").write_text("base: none.yaml\n")
    (folder / "preset.yaml").write_text(PRESET.format(rows=recipes_folder() / "deconstruction"))
    (folder / "truncated.jpg").write_bytes(odd_images()["truncated.jpg"])
    (folder / "empty").mkdir()
    for name in ("nan", "cut", "wide", "json", "encoder"):
        shutil.copytree(folder / "run", folder / name, ignore=shutil.ignore_patterns("checkpoints"))
    weights = folder / "run" / "model.safetensors"
    tensors = load_file(weights)
    first = "ldae.layers.0.attention.q_proj.weight"
    save_file({**tensors, first: torch.full_like(tensors[first], float("nan"))}, folder / "nan" / "model.safetensors")
    (folder / "cut" / "model.safetensors").write_bytes(weights.read_bytes()[:5000])
    config = json.loads((folder / "run" / "config.json").read_text())
    (folder / "wide" / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))
    (folder / "json" / "config.json").write_text(json.dumps(config)[:-9])
    (folder / "broken").mkdir()
    (folder / "broken" / "results.json").write_text("[{")


def refuse(words: str) -> tuple[int, str]:
    """Run a command line in this process; returns the exit status, and what the process wrote to stderr."""
    kept = os.dup(2)
    with tempfile.TemporaryFile("w+") as file:
        os.dup2(file.fileno(), 2)  # what libraries write themselves
        try:
            with redirect_stdout(StringIO()), redirect_stderr(file):
                status = main(words.split())
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            forget_processes()
        file.seek(0)
        return status, file.read()


def table(ground: Path) -> list[tuple[str, int, str]]:
    """Try all of them; returns command line, exit status and stderr of each."""
    made = grounds.build(ground)
    with grounds.copied(made, ground / "wrong", "run", "data", "table", "image.png", "recipe.yaml") as folder:
        write_wrong(folder)
        return [(words, *refuse(words)) for words in WRONG]


if __name__ == "__main__":
    constants.HF_HUB_OFFLINE = True
    datasets.disable_progress_bars()  # as the command does itself where stderr is no terminal
    with tempfile.TemporaryDirectory(prefix="refusals-") as folder:
        print("| command | status | stderr |\n|---|---|---|")
        for words, status, said in table(Path(folder)):
            print(f"| `ldae {words}` | {status} | `{said.strip().replace(folder, '')}` |")
