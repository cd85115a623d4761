"""Twenty times kill -9, at random moments of every verb that takes hours: nothing changes, nothing is done twice.

pytest -m slow tests/training/test_twenty_kills.py -s prints the moments.
"""

import hashlib
import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from tests.deconstruct.conftest import write_tiny_preset
from tests.fuzz import ground as grounds
from tests.processes import ForkedProcess, forget_processes
from tests.training.conftest import TINY


pytestmark = pytest.mark.slow

KILLS = 5  # of each verb
ROOT = Path(__file__).parents[2] / "training"


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("kills")
    forget_processes()
    grounds.build(folder)
    finish(start("knn", ["--help"], folder))  # the first process waits for the imports of all
    yield folder
    forget_processes()


def start(verb: str, arguments: list[str], folder: Path) -> ForkedProcess:
    return ForkedProcess(ROOT / f"{verb}.py", *arguments, folder=folder)


def finish(process: ForkedProcess) -> None:
    done = process.wait()
    assert done.returncode == 0, done.stderr[-3000:]


def kill_and_compare(
    verb: str, place: Path, command: Callable[[Path], list[str]], kept: Callable[[Path], object]
) -> None:
    """Run once to the end, then again and again with kills, and compare what is kept in the folders."""
    began = time.monotonic()
    finish(start(verb, command(place / "whole"), place))
    seconds = time.monotonic() - began
    whole, chance, kills, folders = kept(place / "whole"), random.Random(verb), 0, 0
    while kills < KILLS:
        folders += 1
        folder = place / f"killed-{folders}"
        while kills < KILLS:
            process, delay = start(verb, command(folder), place), chance.uniform(0.1, 0.9) * seconds
            ends = time.monotonic() + delay
            while process.poll() is None and time.monotonic() < ends:
                time.sleep(0.005)
            if process.poll() is not None:
                finish(process)  # it came to its end before the moment
                break
            process.kill()
            kills += 1
            print(f"{verb}: kill {kills} after {delay:.2f} of {seconds:.2f} s")
        finish(start(verb, command(folder), place))
        assert kept(folder) == whole
        left = [path.name for path in folder.rglob(".*") if path.name != ".claim"]
        assert not left, f"a killed start left {left}"
    print(f"{verb}: {kills} kills over {folders} folders, all as uninterrupted")


def trained(folder: Path) -> object:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [(record["images"], record["loss"]) for record in records if record["event"] == "train"]
    return hash_of(folder / "model.safetensors"), losses


def hash_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_five_kills_of_pretraining(ground: Path, tmp_path: Path) -> None:
    budget = {**TINY["training"], "images": 2560, "checkpoint_every_images": 160, "log_every_images": 160}
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({**TINY, "training": budget}))
    kill_and_compare("pretrain", tmp_path, lambda to: ["--config", str(recipe), "--output_dir", str(to)], trained)


def test_five_kills_of_finetuning(ground: Path, tmp_path: Path) -> None:
    options = "--images 1280 --total_batch_size 32 --checkpoint_every_images 160 --log_every_images 160".split()
    run = str(ground / "made" / "run")
    kill_and_compare("finetune", tmp_path, lambda to: [run, "--output_dir", str(to), *options], trained)


def test_five_kills_of_extraction(ground: Path, tmp_path: Path) -> None:
    options = "--dataset digits --split test --num_workers 0 --batch_size 4 --rows_per_shard 8 --device cpu".split()
    run = str(ground / "made" / "run")

    def kept(folder: Path) -> object:
        noted = json.loads((folder / "extraction.json").read_text())
        return noted, {path.name: hash_of(path) for path in sorted(folder.glob("data/*.parquet"))}

    kill_and_compare("extract_features", tmp_path, lambda to: [run, "--output_dir", str(to), *options], kept)


def test_five_kills_of_deconstruct(ground: Path, tmp_path: Path) -> None:
    data = ground / "made" / "data"
    probe = {"search_timesteps": [10], "study_rows": [], "horizontal_flip": False}
    preset = write_tiny_preset(tmp_path / "preset.yaml", data, rows=[6, 7], classifier=None, probe=probe)

    def kept(folder: Path) -> object:
        found = {path.relative_to(folder).as_posix(): hash_of(path) for path in folder.rglob("model.safetensors")}
        values = {
            path.relative_to(folder).as_posix(): sorted(
                (e["metric"], e["checkpoint"], e["value"]) for e in json.loads(path.read_text())
            )
            for path in folder.rglob("results.json")
        }
        return found, values

    kill_and_compare("deconstruct", tmp_path, lambda to: ["--config", str(preset), "--output_dir", str(to)], kept)
