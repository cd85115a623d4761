"""Files are whole, and readable to whom the umask lets read them."""

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ldae.whole_file import move_into, open_permissions, write_whole


@pytest.fixture(params=[0o022, 0o027, 0o002])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_moved_files_have_the_permissions_of_the_umask(umask, tmp_path):
    staging, folder = tmp_path / "staging", tmp_path / "folder"
    (staging / "inner").mkdir(parents=True)
    folder.mkdir()
    save_file({"a": torch.zeros(2)}, staging / "model.safetensors")
    assert mode(staging / "model.safetensors") == 0o600  # as the writer leaves it
    (staging / "inner" / "text").write_text("inner")
    move_into(staging, folder)
    assert mode(folder / "model.safetensors") == mode(folder / "inner" / "text") == 0o666 & ~umask
    assert (folder / "inner" / "text").read_text() == "inner"
    assert not [path for path in staging.rglob("*") if path.is_file()]


def test_the_last_file_comes_last(tmp_path, monkeypatch):
    staging, moved = tmp_path / "staging", []
    staging.mkdir()
    for name in ("a", "config.json", "z"):
        (staging / name).write_text(name)
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda source, target: moved.append(target.name) or replace(source, target))
    move_into(staging, tmp_path / "folder", last="config.json")
    assert moved == ["a", "z", "config.json"]


def test_a_folder_opens_with_all_in_it(umask, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o700)
    save_file({"a": torch.zeros(2)}, folder / "model.safetensors")
    open_permissions(folder)
    assert (mode(folder), mode(folder / "model.safetensors")) == (0o777 & ~umask, 0o666 & ~umask)
    assert os.umask(umask) == umask  # as it was


def test_a_file_is_replaced_whole(umask, tmp_path):
    write_whole(tmp_path / "file", "old")
    write_whole(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "new" and mode(tmp_path / "file") == 0o666 & ~umask
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
