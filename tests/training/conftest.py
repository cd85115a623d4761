"""A run small enough for a test: real components, eight steps of thirty-two digits."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from ldae.training.loop import Callback, Run, train
from ldae.training.recipe import Recipe, load_recipe
from ldae.training.run_folder import RunFolder
from ldae.training.task import Task
from tests.processes import forget_processes


TINY = {
    "model": {
        "image_size": 16,
        "patch_size": 4,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "decoder_num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "latent_dim": 4,
    },
    "data": {"dataset": "digits", "num_workers": 0, "random_resized_crop": True, "horizontal_flip": True},
    "tokenizer": {"tokenizer_images": 200},
    "training": {
        "images": 256,
        "total_batch_size": 32,
        "base_learning_rate": 1e-2,
        "warmup_images": 64,
        "log_every_images": 64,
        "checkpoint_every_images": 128,
        "probe_every_images": 0,
        "select_features": False,
    },
}


class After(Callback):
    """Calls a function once, after so many steps."""

    def __init__(self, steps: int, act: Callable[[Run], object]):
        self.steps, self.act = steps, act

    def after_step(self, run: Run) -> None:
        if run.images_seen == self.steps * run.options.total_batch_size:
            self.act(run)


def train_task(task: Task, *callbacks: Callback) -> RunFolder:
    """Train a task in its recipe's folder."""
    folder = RunFolder.from_recipe(task.recipe)
    train(task, task.options, folder, callbacks)
    return folder


def stop_after(task: Task, steps: int, *callbacks: Callback) -> RunFolder:
    """Train a task until it receives a SIGTERM after so many steps."""
    with pytest.raises(SystemExit) as stop:
        train_task(task, *callbacks, After(steps, lambda run: os.kill(os.getpid(), signal.SIGTERM)))
    assert stop.value.code == 128 + signal.SIGTERM
    return RunFolder.from_recipe(task.recipe)


@pytest.fixture(autouse=True)
def fresh_accelerator():
    """Accelerate keeps one state for the process; each run of a test starts without."""
    yield
    forget_processes()


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY))
    return path


def as_text(value: object) -> str:
    """Write a value as on a command line."""
    return value if isinstance(value, str) else yaml.safe_dump(value).removesuffix("...\n").strip()


@pytest.fixture
def make_recipe(recipe_file: Path, tmp_path: Path) -> Callable[..., Recipe]:
    def make(folder: str = "run", **overrides: object) -> Recipe:
        text = {name: as_text(value) for name, value in overrides.items()}
        return load_recipe(recipe_file, {"output_dir": str(tmp_path / folder), **text})

    return make
