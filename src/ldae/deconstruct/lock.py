"""A lock on a folder that several processes, perhaps on several machines, work in: held while its heart beats."""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from ldae.errors import RunError


LOCK_FILE = ".lock"
BEAT_SECONDS = 5.0
STALE_SECONDS = 60.0


class FolderLock:
    """
    Who holds the file `.lock` of a folder works in it; others wait or do something else meanwhile.

    The holder touches the file every few seconds from a thread of its own. A lock that was not touched for a minute, or
    whose process is gone from this machine, belongs to nobody: the next one takes it over. Ages are told by the file
    system's clock, so that machines on shared storage need not agree on the time.

    Args:
        folder (`Path`): Made where it is missing.
        beat_seconds (`float`, defaults to 5, in seconds): Between two touches.
        stale_seconds (`float`, defaults to 60, in seconds): Age at which a lock is stale.

    Example:

    ```python
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> first, second = FolderLock(folder), FolderLock(folder)
    >>> first.acquire(), second.acquire()
    (True, False)
    >>> first.release()
    >>> second.acquire()
    True
    >>> second.release()

    ```
    """

    def __init__(
        self, folder: Path, *, beat_seconds: float = BEAT_SECONDS, stale_seconds: float = STALE_SECONDS
    ) -> None:
        self.path = Path(folder) / LOCK_FILE
        self.beat_seconds, self.stale_seconds = beat_seconds, stale_seconds
        self.token = uuid.uuid4().hex
        self._stop: threading.Event | None = None
        self._thread: threading.Thread | None = None

    def acquire(self) -> bool:
        """Take the lock if it is free or stale; whether it is held now."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        own = self._beside("own")
        own.write_text(json.dumps({"token": self.token, "host": socket.gethostname(), "pid": os.getpid()}))
        taken = self._create(own) or self._take_over(own)
        own.unlink(missing_ok=True)
        if taken:
            self._stop = threading.Event()
            self._thread = threading.Thread(target=self._beat, args=(self._stop,), daemon=True, name="ldae-lock")
            self._thread.start()
        return taken

    def wait(self, poll_seconds: float = 1.0) -> None:
        """Wait until the lock is held."""
        while not self.acquire():
            time.sleep(poll_seconds)

    def release(self) -> None:
        """Let it go; nothing where it is not held, or was taken over by another process."""
        if self._stop is None:
            return
        self._stop.set()
        assert self._thread is not None
        self._thread.join()
        self._stop = None
        with self._changing(self.token) as may_change:
            if may_change:
                self.path.unlink()

    def check(self) -> None:
        """
        Raises:
            RunError: where another process has taken the lock over, as after this one was suspended for long.
        """
        found = self._read()
        if found is None or found["token"] != self.token:
            raise RunError(
                f"{self.path.parent} was taken over by {describe(found)} while this process stood still; it goes on there."
            )

    def holder(self) -> str | None:
        """Who holds it, in words; `None` where nobody does."""
        found = self._read()
        return None if found is None or self._is_stale(found) else describe(found)

    def __enter__(self) -> "FolderLock":
        self.wait()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()

    def _beside(self, purpose: str, token: str | None = None) -> Path:
        return self.path.with_name(f"{LOCK_FILE}.{token or self.token}.{purpose}")

    def _create(self, own: Path) -> bool:
        """Put the file in its place, content and all: a hard link either takes the name or finds it taken."""
        try:
            os.link(own, self.path)
        except FileExistsError:
            return False
        return True

    def _take_over(self, own: Path) -> bool:
        """Put the file in the place of a stale one."""
        found = self._read()
        if found is None or not self._is_stale(found):
            return False
        with self._changing(found["token"]) as may_change:
            if may_change:
                os.replace(own, self.path)
            return may_change

    @contextmanager
    def _changing(self, token: str) -> Iterator[bool]:
        """
        Whether the lock may be taken from the holder `token` while this is entered: it is still that one's, and no one
        else is about to take it.
        """
        claim = self._beside("claim", token)
        try:
            claim.touch(exist_ok=False)
        except FileExistsError:
            with suppress(FileNotFoundError):
                if self._now() - claim.stat().st_mtime > self.stale_seconds:  # whoever made it is gone
                    claim.unlink()
            yield False
            return
        try:
            found = self._read()
            yield found is not None and found["token"] == token
        finally:
            claim.unlink()

    def _read(self) -> dict | None:
        try:
            with self.path.open() as file:  # age and content of one and the same lock
                return {"seen": os.fstat(file.fileno()).st_mtime, **json.load(file)}
        except FileNotFoundError:
            return None

    def _is_stale(self, found: dict) -> bool:
        if found["host"] == socket.gethostname() and not _runs(found["pid"]):
            return True
        return self._now() - found["seen"] > self.stale_seconds

    def _now(self) -> float:
        """The file system's time."""
        probe = self._beside("now")
        probe.touch()
        now = probe.stat().st_mtime
        probe.unlink()
        return now

    def _beat(self, stop: threading.Event) -> None:
        while not stop.wait(self.beat_seconds):
            found = self._read()
            if found is None or found["token"] != self.token:
                return  # taken over: `check` says so
            try:
                os.utime(self.path)
            except FileNotFoundError:
                return


def describe(found: dict | None) -> str:
    """A lock's holder in words."""
    return "no process" if found is None else f"process {found['pid']} on {found['host']}"


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
