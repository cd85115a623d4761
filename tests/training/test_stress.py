"""
What a long run meets: kills at any moment, a job system's SIGTERM, several machines, bad images, a failing Hub.

Every run is a process of its own, started as by a user. It takes minutes: pytest -m slow tests/training/test_stress.py
"""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from tests.data.image_files import encode, random_pixels, write_odd_folder
from tests.hub.hub_server import TestHub


pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
LAUNCHER = ROOT / "training" / "pretrain.py"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
OFFLINE = {**ENVIRONMENT, "HF_HUB_OFFLINE": "1"}

# Big enough that fitting the tokenizer, the steps and the writing of a checkpoint all take time to be hit in.
STREAMED = {
    "model": {"size": "nano", "image_size": 16, "patch_size": 4, "latent_dim": 8},
    "data": {"streaming": True, "num_workers": 2, "shuffle_window": 64, "random_resized_crop": True},
    "tokenizer": {"tokenizer_images": 1500},
    "training": {
        "images": 8192,
        "total_batch_size": 32,
        "base_learning_rate": 1e-3,
        "warmup_images": 1024,
        "log_every_images": 512,
        "checkpoint_every_images": 512,
        "probe_every_images": 0,
    },
}


def write_noise_parquet(folder: Path, shards: int = 4, rows: int = 375, side: int = 96) -> Path:
    """Shards of random images, slow enough to decode."""
    folder.mkdir()
    for shard in range(shards):
        pixels = (random_pixels(side, side, seed=shard * rows + row) for row in range(rows))
        images = [{"bytes": encode(Image.fromarray(p)), "path": None} for p in pixels]
        column = pa.array(images, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
        path = folder / f"train-{shard:05d}-of-{shards:05d}.parquet"
        pq.write_table(pa.table({"image": column}), path, row_group_size=32)
    return folder


class Run:
    """One start of a run: its process, and what it has printed so far."""

    def __init__(self, recipe: Path, folder: Path, *overrides: str, environment: dict[str, str] = OFFLINE):
        folder.parent.mkdir(exist_ok=True)
        self.log = folder.with_name(f"{folder.name}-{time.monotonic_ns()}.log")
        command = [sys.executable, str(LAUNCHER), "--config", str(recipe), "--output_dir", str(folder), *overrides]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)

    @property
    def output(self) -> str:
        return self.log.read_text()

    def wait_until(self, reached: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + 180
        while not reached():
            assert self.process.poll() is None, f"the run ended before {what}:\n{self.output}"
            assert time.monotonic() < deadline, f"the run never came to {what}:\n{self.output}"
            time.sleep(0.0005)

    def wait_for(self, text: str) -> None:
        self.wait_until(lambda: text in self.output, text)

    def workers(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def kill(self) -> None:
        """kill -9; its loader's workers must notice and end as well."""
        workers = self.workers()
        assert self.process.poll() is None, f"the run ended before it could be killed:\n{self.output}"
        self.process.kill()
        self.process.wait()
        _, alive = psutil.wait_procs(workers, timeout=30)
        assert not alive

    def finish(self) -> str:
        assert self.process.wait(timeout=600) == 0, self.output
        return self.output


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streamed")
    sections = {**STREAMED, "data": {"dataset": str(write_noise_parquet(folder / "images")), **STREAMED["data"]}}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(sections))
    return path


@pytest.fixture(scope="module")
def uninterrupted(recipe: Path) -> Path:
    folder = recipe.parent / "uninterrupted"
    Run(recipe, folder).finish()
    return folder


def trained(folder: Path) -> list[tuple[int, float]]:
    """Images seen and loss of every logged line."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(record["images"], record["loss"]) for record in records if record["event"] == "train"]


def assert_same_run(ours: Path, theirs: Path) -> None:
    assert (ours / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()
    assert trained(ours) == trained(theirs)
    left = [path.name for path in ours.rglob(".*")]
    assert not left, f"an interrupted start left {left}"


def test_five_kills_at_random_moments_change_no_byte(recipe, uninterrupted, tmp_path):
    chance = random.Random(0)
    folder = tmp_path / "killed"
    unfinished = 0
    for moment in ("fit", "steps", "checkpoint", "steps", "checkpoint"):
        run = Run(recipe, folder)
        if moment == "fit":
            run.wait_until(run.workers, "reading images for the tokenizer")
            time.sleep(chance.uniform(0, 0.3))
        elif moment == "steps":
            run.wait_for("Batch:")
            time.sleep(chance.uniform(0.3, 1.2))
        else:
            for _ in range(chance.choice((1, 2, 3))):
                run.wait_until(
                    lambda: not list(folder.glob("checkpoints/.incomplete-*")), "the steps between checkpoints"
                )
                run.wait_until(lambda: list(folder.glob("checkpoints/.incomplete-*")), "a checkpoint")
            time.sleep(chance.uniform(0, 0.01))
        run.kill()
        unfinished += bool(list(folder.glob("checkpoints/.incomplete-*")))
        if moment == "fit":
            assert "PCA of" not in run.output and not list(folder.glob("checkpoints/*"))
        print(f"killed in {moment}: checkpoints {sorted(path.name for path in folder.glob('checkpoints/*'))}")
    assert unfinished, "no kill fell into the writing of a checkpoint"
    assert "Resuming from" in Run(recipe, folder).finish()
    assert_same_run(folder, uninterrupted)


def test_sigterm_from_outside_saves_and_the_same_command_goes_on(recipe, uninterrupted, tmp_path):
    folder = tmp_path / "stopped"
    run = Run(recipe, folder)
    run.wait_for("Batch:")
    time.sleep(random.Random(1).uniform(0.5, 1.5))
    for process in (run.process, *run.workers()):  # a job system signals all processes of a job at once
        process.send_signal(signal.SIGTERM)
    assert run.process.wait(timeout=60) == 143, run.output
    assert "Stopped by a signal; saved at" in run.output
    assert "Resuming from" in Run(recipe, folder).finish()
    assert_same_run(folder, uninterrupted)


# Run by each process in place of training/pretrain.py: notes what every batch of the training held.
WITNESS = """
import json, os, sys
from ldae.data import ImageLoader, hash_images
from ldae.cli import run_verb

read, following = {}, ImageLoader.__next__

def witnessed(loader):
    batch = following(loader)
    read.setdefault(id(loader), []).append([batch.positions.tolist(), hash_images(batch.images).tolist()])
    return batch

ImageLoader.__next__ = witnessed
status = run_verb("pretrain", sys.argv[2:])
with open(f"{sys.argv[1]}-{os.environ.get('RANK', '0')}.json", "w") as file:
    json.dump(list(read.values())[-1], file)  # the last loader is the training's, the first the tokenizer's
sys.exit(status)
"""


def test_two_machines_read_disjoint_examples_and_follow_the_curve_of_one(recipe_file, tmp_path):
    script = tmp_path / "witness.py"
    script.write_text(WITNESS)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def launch(name: str, *prefix: str) -> subprocess.Popen[str]:
        command = [sys.executable, *prefix, str(script), str(tmp_path / name), "--config", str(recipe_file)]
        command += ["--output_dir", str(tmp_path / name), "--images", "1024"]
        environment = {**OFFLINE, "ACCELERATE_USE_CPU": "1"}
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def finished(processes: Sequence[subprocess.Popen[str]]) -> list[str]:
        outputs = [process.communicate(timeout=300)[0] for process in processes]
        assert not any(process.returncode for process in processes), "\n".join(outputs)
        return outputs

    finished([launch("one")])
    accelerate = ["-m", "accelerate.commands.launch"]
    accelerate += ["--config_file", str(ROOT / "training" / "accelerate" / "multi_node.yaml"), "--num_machines", "2"]
    accelerate += ["--num_processes", "2", "--main_process_ip", "127.0.0.1", "--main_process_port", str(port)]
    outputs = finished([launch("two", *accelerate, "--machine_rank", str(rank)) for rank in (0, 1)])
    assert "2 processes x 1 accumulated x 16" in outputs[0]

    assert trained(tmp_path / "two") == [
        (images, pytest.approx(loss, abs=1e-5)) for images, loss in trained(tmp_path / "one")
    ]
    one, first, second = (
        json.loads((tmp_path / name).read_text()) for name in ("one-0.json", "two-0.json", "two-1.json")
    )
    assert len(one) == 1024 // 32
    for (positions, images), (positions_0, images_0), (positions_1, images_1) in zip(one, first, second, strict=True):
        assert positions_0 + positions_1 == positions and images_0 + images_1 == images
        assert not set(images_0) & set(images_1)


def test_a_folder_of_odd_and_broken_images_trains_through(recipe_file, tmp_path):
    images = write_odd_folder(tmp_path / "images", plain=20)
    folder = tmp_path / "run"
    for streaming in ("false", "true"):
        output = Run(
            recipe_file,
            folder / streaming,
            "--dataset",
            str(images),
            "--streaming",
            streaming,
            "--num_workers",
            "2",
            "--random_resized_crop",
            "false",
        ).finish()
        counts = next(line for line in output.splitlines() if line.startswith("Images read:"))
        for told in ("CMYK", "16-bit", "greyscale", "animated", "very narrow", "rotated by EXIF"):
            assert f"1 {told}" in counts or f"2 {told}" in counts, counts
        assert "skipped 3 (" in counts and "1 empty file" in counts and "1 truncated or damaged" in counts, counts
        assert "1 not an image" in counts
        losses = [loss for _, loss in trained(folder / streaming)]
        assert losses[-1] < losses[0]


def test_a_hub_that_fails_in_training_costs_a_warning_and_gets_the_finished_folder(recipe, tmp_path):
    folder = tmp_path / "shared"
    with TestHub() as hub:
        hub.fail_next(1)  # the first save's push; those after it and the last one go through
        environment = {**ENVIRONMENT, **hub.environment(tmp_path / "home")}
        environment.pop("HF_HUB_OFFLINE", None)
        overrides = ("--push_to_hub", "tester/shared", "--images", "12288", "--checkpoint_every_images", "1024")
        output = Run(recipe, folder, *overrides, environment=environment).finish()
        assert "Could not push to tester/shared; the next save tries again." in output, output
        assert "not on the Hub" not in output
        files = hub.repos["model", "tester/shared"].files()
    assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert b'from_pretrained("tester/shared"' in files["README.md"]
    assert json.loads(files["metrics.jsonl"].splitlines()[-1])["event"] == "trained"
