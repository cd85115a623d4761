"""A finished run's folder, and a way to run Python against a loopback Hub, with or without ldae."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

import ldae
from ldae import LDAEConfig, LDAEForPreTraining, LDAEScheduler
from ldae.data.image_processor import save_image_processor
from ldae.results import add_result
from tests.hub.hub_server import TestHub


# Put before a script that must run where ldae is not installed: any import of it fails as if it were not there.
NO_LDAE = """
import importlib.abc, sys
class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "ldae":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refuse())
sys.path[:] = [path for path in sys.path if not path.rstrip("/").endswith("src")]
try:
    import ldae
except ModuleNotFoundError:
    pass
else:
    raise AssertionError("ldae can be imported")
"""


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
        {"images": 12800, "event": "train", "loss": 0.5, "images_per_second": 812.0},
        {"images": 12800, "event": "trained", "seconds": 90.0, "hardware": "CPU, 2 threads", "processes": 1},
        {"images": 12800, "event": "finished"},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    entry = {"metric": "accuracy", "dataset": "digits", "split": "test", "checkpoint": ".", "n": 360}
    ridge = {"name": "ridge", "labels_per_class": 5, "timestep": 10}
    add_result(folder, {**entry, "value": 0.8125, "stderr": 0.004, "protocol": ridge, "seeds": list(range(20))})
    add_result(folder, {**entry, "value": 0.75, "protocol": {"name": "knn", "k": 20}, "seed": 0})
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


Runner = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run_python(tmp_path: Path) -> Runner:
    """Runs a script in a process of its own: alone, against a hub, or where ldae cannot be imported."""

    def run(
        script: str,
        *arguments: object,
        hub: TestHub | None = None,
        without_ldae: bool = False,
        cwd: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        home = tmp_path / "hf_home"
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PYTHON"))}
        environment |= {"HF_HOME": str(home), "OMP_NUM_THREADS": "1"}
        if not without_ldae:  # the one under test, wherever another is installed
            environment["PYTHONPATH"] = str(Path(ldae.__file__).parents[1])
        environment |= hub.environment(home) if hub is not None else {"HF_HUB_OFFLINE": "1"}
        path = tmp_path / "script.py"
        path.write_text((NO_LDAE if without_ldae else "") + script)
        done = subprocess.run(
            [sys.executable, str(path), *map(str, arguments)],
            env=environment,
            cwd=cwd or tmp_path,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return done

    return run
