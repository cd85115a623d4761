"""A preset small enough for a test: the real rows of the trajectory, on real digits, for six steps."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock

from ldae.cli import main
from ldae.data import DataConfig, open_images
from tests.processes import forget_processes


ROWS = Path(__file__).parents[2] / "training" / "recipes" / "deconstruction"

TINY: dict[str, Any] = {
    "recipes": str(ROWS),
    "seeds": [0],
    "model": {
        "size": "nano",
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "decoder_num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "image_size": 16,
        "patch_size": 4,
        "latent_dim": 4,
        "conv_vae_config": {
            "block_out_channels": [8, 16],
            "layers_per_block": 1,
            "latent_channels": 1,
            "norm_num_groups": 4,
            "mid_block_add_attention": False,
        },
    },
    "data": {"eval_split": None, "num_workers": 0},
    "tokenizer": {
        "tokenizer_images": 192,
        "tokenizer_batch_size": 32,
        "tokenizer_warmup_images": 0,
        "adversarial_start_images": 96,
    },
    "training": {
        "images": 192,
        "total_batch_size": 32,
        "micro_batch_size": None,
        "base_learning_rate": 1e-2,
        "warmup_images": 64,
        "mixed_precision": "no",
        "compile": False,
        "log_every_images": 64,
        "checkpoint_every_images": 64,
        "probe_every_images": 0,
    },
    "classifier": {
        "images": 192,
        "total_batch_size": 32,
        "hidden_sizes": [8, 16],
        "depths": [1, 1],
        "embedding_size": 8,
    },
    "probe": {"horizontal_flip": False, "timesteps": [0, 80], "search_timesteps": [0, 10, 80]},
}


def write_tiny_preset(path: Path, digits: Path, **keys: Any) -> Path:
    """Write the tiny preset for a folder of images, with other keys over it (`None` removes one)."""
    keys.setdefault("data", {**TINY["data"], "dataset": str(digits)})
    content = {key: value for key, value in {**TINY, **keys}.items() if value is not None}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of a test run share."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    (shared / "deconstruct").mkdir(exist_ok=True)
    return shared / "deconstruct"


@pytest.fixture(scope="session")
def digits(place: Path) -> Path:
    """A folder of 400 training and 120 test digits, to be probed in a third of the time."""
    folder = place / "digits"
    with FileLock(place / "digits.lock"):
        if not folder.is_dir():
            folder.mkdir()
            for split, count in (("train", 400), ("test", 120)):
                rows = open_images(DataConfig("digits"), split).dataset.with_format(None).select(range(count))
                rows.to_parquet(folder / f"{split}.parquet")
    return folder


@pytest.fixture(scope="session")
def finished(place: Path, digits: Path) -> tuple[Path, Path]:
    """A preset of three rows, a sweep and two seeds, and its folder after a launch, which takes half a minute."""
    sweep = {"dimensions": {"pca": [2]}}
    generation = {"num_images": 40, "reference_images": 60, "steps": 2, "grid": 9, "batch_size": 20, "rows": [0, 7]}
    keys = {"rows": [0, 7, 12], "seeds": [0, 1], "sweep": sweep, "generation": generation}
    with FileLock(place / "finished.lock"):
        if not (place / "preset.yaml").is_file():
            preset = write_tiny_preset(place / "starting.yaml", digits, **keys)
            assert main(["deconstruct", "--config", str(preset), "--output_dir", str(place / "out")]) == 0
            forget_processes()
            preset.rename(place / "preset.yaml")
    return place / "preset.yaml", place / "out"


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """Accelerate keeps one state for the process; each run of a test starts without."""
    yield
    forget_processes()


@pytest.fixture
def write_preset(tmp_path: Path, digits: Path) -> Callable[..., Path]:
    """[`write_tiny_preset`] into the test's own folder."""
    return lambda name="preset.yaml", **keys: write_tiny_preset(tmp_path / name, digits, **keys)
