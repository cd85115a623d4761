"""A disk that is full, or read-only, from any of ten moments of a run on: one line, and nothing is lost.

It takes a minute: pytest -m slow tests/training/test_full_disk.py -s prints the moments.
"""

import errno
import io
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ldae.cli import run_verb
from tests.processes import forget_processes
from tests.training.conftest import TINY
from tests.training.test_twenty_kills import trained


pytestmark = pytest.mark.slow

# Files in whose writing the moments lie.
FILES = (
    "recipe.yaml optimizer.safetensors state.json checkpoints/images- metrics.jsonl config.json modeling_ldae.py "
    "scheduler_config.json .png README.md"
).split()
SAVERS = ("ldae.training.checkpoint.save_file", "transformers.modeling_utils.safe_save_file")


class Disk:
    """Counts what is written below a folder, and refuses it from one moment on."""

    def __init__(self, patch: pytest.MonkeyPatch, folder: Path, full_at: float, number: int = errno.ENOSPC) -> None:
        self.folder, self.full_at, self.number, self.written = folder, full_at, number, list[str]()
        self.open, self.replace = io.open, os.replace
        patch.setattr(io, "open", self.opened)
        patch.setattr("builtins.open", self.opened)
        patch.setattr(os, "replace", self.replaced)
        for name in SAVERS:
            patch.setattr(name, self.saved(name))

    def write(self, path: Any) -> None:
        if not str(path).startswith(str(self.folder)):
            return
        if len(self.written) >= self.full_at:
            raise OSError(self.number, os.strerror(self.number), str(path))
        self.written.append(str(path))

    def opened(self, file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if set(mode) & set("wax+"):
            self.write(file)
        return self.open(file, mode, *arguments, **options)

    def replaced(self, source: Any, target: Any, **options: Any) -> None:
        self.write(target)
        self.replace(source, target, **options)

    def saved(self, name: str) -> Callable[..., None]:
        from safetensors.torch import save_file

        def save(tensors: Any, path: Any, **options: Any) -> None:
            self.write(path)
            save_file(tensors, path, **options)

        return save


def test_a_disk_that_fills_up_at_ten_moments_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(TINY))

    def run(folder: Path) -> int:
        forget_processes()
        return run_verb("pretrain", ["--config", str(recipe), "--output_dir", str(folder)])

    with monkeypatch.context() as patch:
        disk = Disk(patch, tmp_path / "whole", float("inf"))
        assert run(tmp_path / "whole") == 0
    whole, told, chance = trained(tmp_path / "whole"), [], random.Random(0)
    for number, name in enumerate(FILES):
        moment = chance.choice([i for i, path in enumerate(disk.written) if name in path])
        folder, kind = tmp_path / f"full-{number}", (errno.ENOSPC, errno.EROFS)[number % 2]
        capsys.readouterr()
        with monkeypatch.context() as patch:
            Disk(patch, folder, moment, kind)
            status = run(folder)
        lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("Warning: ")]
        error = lines[-1]
        assert status == 2 and len(lines) == 1 and os.strerror(kind) in error, (moment, error)
        assert str(folder) in error and "Traceback" not in error
        told.append(f"write {moment + 1} of {len(disk.written)}, {name}: {error}")
        assert run(folder) == 0
        assert trained(folder) == whole, moment
        assert not [path.name for path in folder.rglob(".*")]
    with capsys.disabled():
        print("\n" + "\n".join(line.replace(str(tmp_path), "") for line in told))
