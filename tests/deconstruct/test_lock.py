"""Locks on folders: held by one, given back, taken over when their holder is gone, and noticed to be lost."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ldae.deconstruct.lock import LOCK_FILE, FolderLock
from ldae.errors import RunError


QUICK = {"beat_seconds": 0.05, "stale_seconds": 0.4}


def write_lock(folder: Path, pid: int, host: str, age: float) -> None:
    """A lock as another process left it `age` seconds ago."""
    path = folder / LOCK_FILE
    path.write_text(json.dumps({"token": "theirs", "host": host, "pid": pid}))
    os.utime(path, (time.time() - age, time.time() - age))


def ended_process() -> int:
    """The id of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_one_holds_it_and_the_next_waits_for_its_release(tmp_path):
    first, second = FolderLock(tmp_path, **QUICK), FolderLock(tmp_path, **QUICK)
    assert first.acquire() and not second.acquire()
    assert second.holder() == f"process {os.getpid()} on {os.uname().nodename}"
    threading.Timer(0.3, first.release).start()
    second.wait(poll_seconds=0.05)
    second.check()
    second.release()
    assert second.holder() is None
    assert list(tmp_path.iterdir()) == []


def test_a_beating_heart_keeps_it_beyond_the_age_of_staleness(tmp_path):
    first, second = FolderLock(tmp_path, **QUICK), FolderLock(tmp_path, **QUICK)
    assert first.acquire()
    time.sleep(3 * QUICK["stale_seconds"])
    assert not second.acquire()
    first.check()
    first.release()


@pytest.mark.parametrize("age", [0, 3600])
def test_that_of_a_process_that_is_gone_is_taken_over_at_once(tmp_path, age):
    write_lock(tmp_path, ended_process(), os.uname().nodename, age)
    lock = FolderLock(tmp_path)
    assert lock.holder() is None and lock.acquire()
    lock.release()


def test_that_of_another_machine_is_taken_over_when_it_is_stale_and_not_before(tmp_path):
    write_lock(tmp_path, 1, "elsewhere", age=30)
    lock = FolderLock(tmp_path)
    assert not lock.acquire() and lock.holder() == "process 1 on elsewhere"
    write_lock(tmp_path, 1, "elsewhere", age=61)
    assert lock.acquire()
    lock.check()
    lock.release()


def test_who_lost_it_is_told_and_leaves_the_new_one_alone(tmp_path):
    lock = FolderLock(tmp_path, **QUICK)
    assert lock.acquire()
    write_lock(tmp_path, 1, "elsewhere", age=0)  # as after this process was suspended for long
    with pytest.raises(RunError, match="taken over by process 1 on elsewhere"):
        lock.check()
    lock.release()
    assert json.loads((tmp_path / LOCK_FILE).read_text())["token"] == "theirs"


def test_of_many_that_find_a_stale_one_a_single_one_gets_it(tmp_path):
    write_lock(tmp_path, 1, "elsewhere", age=3600)
    locks = [FolderLock(tmp_path) for _ in range(16)]
    start, taken = threading.Barrier(len(locks)), []

    def try_it(lock: FolderLock) -> None:
        start.wait()
        if lock.acquire():
            taken.append(lock)

    threads = [threading.Thread(target=try_it, args=(lock,)) for lock in locks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 1
    taken[0].release()
    assert list(tmp_path.iterdir()) == []
