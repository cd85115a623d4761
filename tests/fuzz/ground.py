"""What the fuzzer damages: a small run with its checkpoints, a DDAE, a feature table, a few digits, made once."""

import json
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from ldae import DDAEModel
from ldae.cli import run_verb
from ldae.data import DataConfig, open_images
from ldae.data.image_processor import save_image_processor
from tests.models.small_diffusers import small_unet
from tests.processes import forget_processes
from tests.training.conftest import TINY


TRAIN, TEST = 40, 12


def build(ground: Path) -> Path:
    """Make everything once in `ground/made`, which is never damaged itself."""
    made = ground / "made"
    if (made / "done").exists():
        return made
    data = made / "data"
    data.mkdir(parents=True)
    for split, count in (("train", TRAIN), ("test", TEST)):
        rows = open_images(DataConfig("digits"), split).dataset.with_format(None).select(range(count))
        rows.to_parquet(data / f"{split}.parquet")
    image = open_images(DataConfig("digits"), "test").dataset.with_format(None)[0]["image"]
    (made / "image.png").write_bytes(image["bytes"])
    recipe = made / "recipe.yaml"
    cache = {"cache_dir": str(made / "cache")}
    recipe.write_text(yaml.safe_dump({**TINY, "data": {**TINY["data"], "dataset": str(data), **cache}}))
    _do("pretrain", "--config", recipe, "--output_dir", made / "run")
    model = DDAEModel.from_diffusers(small_unet())
    model.save_pretrained(made / "ddae")
    save_image_processor(made / "ddae", model.config)
    table = ["--dataset", data, "--split", "test", "--output_dir", made / "table", "--rows_per_shard", 4]
    _do("extract_features", made / "run", *table, "--index", "--cache_dir", made / "cache")
    (made / "done").touch()
    return made


def _do(verb: str, *arguments: object) -> None:
    said = StringIO()
    with redirect_stdout(StringIO()), redirect_stderr(said):
        status = run_verb(verb, [str(argument) for argument in arguments])
    assert status == 0, said.getvalue()
    forget_processes()


@contextmanager
def copied(made: Path, folder: Path, *names: str) -> Iterator[Path]:
    """Copy some of what was made into a folder of a case, work in it, and remove it afterwards."""
    folder.mkdir()
    for name in names:
        if (made / name).is_dir():
            shutil.copytree(made / name, folder / name)
        else:
            shutil.copy(made / name, folder / name)
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield folder
    finally:
        os.chdir(before)
        shutil.rmtree(folder, ignore_errors=True)
        forget_processes()


def assert_finite(folder: Path) -> None:
    """No number that a command wrote is missing or infinite."""
    for path in folder.rglob("results.json"):
        for entry in json.loads(path.read_text()):
            _finite(entry, f"{path.name} {entry.get('metric')}")
    for path in folder.rglob("data/*.parquet"):
        table = pq.read_table(path)
        for name in table.column_names:
            if not name.startswith("features"):
                continue
            column = table.column(name).combine_chunks()
            while not pa.types.is_floating(column.type):
                column = column.flatten()
            assert np.isfinite(column.to_numpy(zero_copy_only=False)).all(), f"{path.name} {name}"


def _finite(value: Any, place: str) -> None:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            _finite(item, place)
    else:
        assert not isinstance(value, float) or math.isfinite(value), f"{place}: {value}"
