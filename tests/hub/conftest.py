"""A finished run's folder."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from ldae import LDAEConfig, LDAEForPreTraining, LDAEScheduler
from ldae.data.image_processor import save_image_processor
from ldae.results import Result, add_result


def make_run_folder(folder: Path, *, fitted: bool = True) -> Path:
    """What a finished nano run leaves, with random weights."""
    torch.manual_seed(0)
    model = LDAEForPreTraining(LDAEConfig.from_size("nano", image_size=16, patch_size=4, latent_dim=8))
    for module in model.modules():  # an untrained l-DAE is the identity: give it something to compute
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=0.1)
    model.ldae.tokenizer.fitted.fill_(fitted)
    model.save_pretrained(folder)
    save_image_processor(folder, model.config)
    LDAEScheduler.from_ldae_config(model.config).save_pretrained(folder / "scheduler")
    recipe = {"data": {"dataset": "digits", "split": "train"}, "training": {"batch_size": 64}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    records = [
        {"images": 6400, "event": "train", "peak_memory_gib": 3.0},
        {"images": 12800, "event": "train", "loss": 0.5, "images_per_second": 812.0, "peak_memory_gib": 2.0},
        {"images": 12800, "event": "trained", "seconds": 90.0, "hardware": "CPU, 2 threads", "processes": 1},
        {"images": 12800, "event": "finished"},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    entry = {"metric": "accuracy", "dataset": "digits", "split": "test", "checkpoint": ".", "n": 360}
    ridge = {"name": "ridge", "labels_per_class": 5, "timestep": 10}
    add_result(
        folder,
        Result.from_entry({**entry, "value": 0.8125, "stderr": 0.004, "protocol": ridge, "seeds": list(range(20))}),
    )
    add_result(folder, Result.from_entry({**entry, "value": 0.75, "protocol": {"name": "knn", "k": 20}, "seed": 0}))
    (folder / "pictures").mkdir()
    Image.new("RGB", (8, 8)).save(folder / "pictures" / "denoising_digits.png")
    (folder / "checkpoints" / "step-1").mkdir(parents=True)
    (folder / "checkpoints" / "step-1" / "model.safetensors").write_bytes(b"not for others")
    (folder / "state.pkl").write_bytes(b"not for others")
    return folder


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run_folder(tmp_path_factory.mktemp("runs") / "digits_nano")


@pytest.fixture
def run_folder(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of a finished run that a test may change."""
    return Path(shutil.copytree(finished_run, tmp_path / "digits_nano"))
