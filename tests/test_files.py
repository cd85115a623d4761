"""Whole files with the umask's permissions; claims on folders: held, given back, taken over and noticed to be lost."""

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ldae.errors import RunError
from ldae.files import (
    CLAIM_FILE,
    FolderClaim,
    hash_settings,
    hash_tensors,
    move_into,
    open_permissions,
    write_whole,
)


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


QUICK = {"seconds": 0.4, "beat_seconds": 0.05}
HERE = socket.gethostname()


def write_claim(folder: Path, pid: int, host: str, seconds: float) -> None:
    """Write a claim as a process on another machine, or one that was killed here, leaves it."""
    lines = ["filelock/2", f"pid={pid}", f"host={host}", "mode=lease", f"token={'0' * 32}", f"duration={seconds!r}"]
    (folder / CLAIM_FILE).write_text("".join(f"{line}\n" for line in lines))


def test_one_claims_a_folder_and_the_next_waits_for_its_release(tmp_path):
    first, second = FolderClaim(tmp_path, **QUICK), FolderClaim(tmp_path, **QUICK)
    assert first.acquire() and not second.acquire()
    assert second.holder() == f"process {os.getpid()} on {HERE}"
    threading.Timer(0.3, first.release).start()
    second.wait(poll_seconds=0.05)
    second.check()
    second.release()
    assert second.holder() is None
    assert list(tmp_path.iterdir()) == []


def test_a_renewed_claim_does_not_expire(tmp_path):
    first, second = FolderClaim(tmp_path, **QUICK), FolderClaim(tmp_path, **QUICK)
    assert first.acquire()
    deadline = time.monotonic() + 3 * QUICK["seconds"]
    while time.monotonic() < deadline:
        assert not second.acquire()
        time.sleep(0.05)
    first.check()
    first.release()


def test_the_claim_of_a_killed_process_is_taken_over_at_once(tmp_path):
    code = "import sys, os, pathlib, ldae.files as f; c = f.FolderClaim(pathlib.Path(sys.argv[1])); "
    killed = subprocess.run(
        [sys.executable, "-c", code + "assert c.acquire(); os.kill(os.getpid(), 9)", str(tmp_path)], check=False
    )
    assert killed.returncode == -9
    assert (tmp_path / CLAIM_FILE).is_file()
    claim = FolderClaim(tmp_path)
    assert claim.acquire()
    claim.check()
    claim.release()


@pytest.mark.parametrize("swaps", [True, False])
def test_the_claim_of_another_machine_is_taken_over_when_it_expires_and_not_before(tmp_path, monkeypatch, swaps):
    if not swaps:  # as on NFS
        monkeypatch.setattr("filelock._soft.exchange_names", lambda source, target: False)
    write_claim(tmp_path, 1, "elsewhere", QUICK["seconds"])
    claim, started = FolderClaim(tmp_path, **QUICK), time.monotonic()
    assert not claim.acquire() and claim.holder() == "process 1 on elsewhere"
    claim.wait(poll_seconds=0.02)
    assert time.monotonic() - started >= QUICK["seconds"]
    claim.check()
    claim.release()
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_lost_its_claim_is_told_and_leaves_the_new_one(tmp_path):
    claim = FolderClaim(tmp_path, **QUICK)
    assert claim.acquire()
    (tmp_path / CLAIM_FILE).unlink()
    write_claim(tmp_path, 1, "elsewhere", QUICK["seconds"])  # as after this process was suspended for long
    with pytest.raises(RunError, match="taken over by process 1 on elsewhere"):
        claim.check()
    claim.release()
    assert FolderClaim(tmp_path).holder() == "process 1 on elsewhere"


def test_the_claim_of_another_machine_is_taken_if_it_is_not_renewed(tmp_path):
    write_claim(tmp_path, 1, "elsewhere", QUICK["seconds"])
    assert FolderClaim(tmp_path, **QUICK).take(poll_seconds=0.02)


def test_a_claim_that_another_machine_renews_is_left_to_it(tmp_path):
    write_claim(tmp_path, 1, "elsewhere", QUICK["seconds"])
    threading.Timer(0.1, os.utime, [tmp_path / CLAIM_FILE]).start()
    claim = FolderClaim(tmp_path, **QUICK)
    assert not claim.take(poll_seconds=0.02) and claim.holder() == "process 1 on elsewhere"


def test_only_one_of_many_takes_an_expired_claim(tmp_path):
    write_claim(tmp_path, 2**30, HERE, 60.0)  # no such process
    claims = [FolderClaim(tmp_path) for _ in range(16)]
    start, taken = threading.Barrier(len(claims)), []

    def take(claim: FolderClaim) -> None:
        start.wait()
        if claim.acquire():
            taken.append(claim)

    threads = [threading.Thread(target=take, args=(claim,)) for claim in claims]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) <= 1
    winner = taken[0] if taken else FolderClaim(tmp_path)
    assert taken or winner.acquire()
    winner.release()
    assert list(tmp_path.iterdir()) == []


def test_tensors_are_hashed_by_name_type_shape_and_content():
    tensors = {"a": torch.arange(4.0), "b": torch.zeros(2, dtype=torch.bfloat16)}
    others = [
        {**tensors, "a": torch.arange(4.0).reshape(2, 2)},
        {**tensors, "a": torch.arange(4.0).double()},
        {**tensors, "a": -torch.arange(4.0)},
        {"b": tensors["a"], "a": tensors["b"]},
    ]
    hashes = [hash_tensors({}, t) for t in (tensors, *others)] + [hash_tensors({"size": 1}, tensors)]
    assert len(set(hashes)) == len(hashes)
    assert hash_tensors({}, dict(reversed(tensors.items()))) == hashes[0]


def test_a_field_that_came_later_changes_no_hash_at_its_default():
    before = [{"data": {"dataset": "digits"}, "sizes": (1, 2)}, None]
    after = [{"data": {"dataset": "digits", "reduced_decoding": True}, "sizes": (1, 2)}, None]
    assert hash_settings(after) == hash_settings(before) == "29bc6825"
    after[0]["data"]["reduced_decoding"] = False
    assert hash_settings(after) != hash_settings(before)
