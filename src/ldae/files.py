"""Files and folders that several processes share: whole-file writes, folder claims and content hashes.

A file may also lie in an object store, as a `UPath` of [`~ldae.remote.open_folder`]. There it appears when its upload
is complete, and folders need not be made.
"""

import hashlib
import json
import os
import random
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from filelock import SoftFileLease, Timeout

from ldae.errors import RunError


if TYPE_CHECKING:
    import torch
    from upath import UPath

AnyPath: TypeAlias = "Path | UPath"  # of a file or folder on this machine, or behind an address
FolderName: TypeAlias = "str | os.PathLike[str] | UPath"
STORES = ("s3", "s3a", "gs", "gcs", "az", "abfs", "hf", "memory")  # file systems without folders
CLAIM_FILE = ".claim"
CLAIM_SECONDS = 60.0
BEAT_SECONDS = 5.0


def write_whole(path: AnyPath, content: str | bytes) -> None:
    r"""Write a file under another name and rename it, so that readers see the old content or the new, never a part.

    Args:
        path (`Path` or `UPath`): The file; its folder exists.
        content (`str` or `bytes`): Its content; text is written as UTF-8 with `\\n` at line ends.

    Raises:
        OSError: If it cannot be written; the old file is then unchanged.
    """
    content = content.encode("utf-8") if isinstance(content, str) else content
    if not isinstance(path, Path):
        path.fs.pipe_file(path.path, content)  # appears whole or not at all
        return
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")  # folders may be shared
    temporary.write_bytes(content)
    os.replace(temporary, path)


def make_folder(path: AnyPath) -> None:
    """Create a folder, and those above it, where they do not exist; object stores have none."""
    if isinstance(path, Path):
        path.mkdir(parents=True, exist_ok=True)
    elif path.protocol not in STORES:
        path.fs.makedirs(path.path, exist_ok=True)


def open_permissions(path: Path) -> None:
    """Give a file, or a folder and everything in it, the permissions that the umask allows.

    safetensors' writer and `tempfile` create files that only their owner can read.

    Args:
        path (`Path`): The file or the folder.
    """
    umask = os.umask(0)
    os.umask(umask)
    for found in (path, *path.rglob("*")) if path.is_dir() else (path,):
        found.chmod((0o777 if found.is_dir() else 0o666) & ~umask)


def move_into(staging: Path, folder: Path, last: str | None = None) -> None:
    """Move all files of a folder into another, each whole, with the permissions that the umask allows.

    Args:
        staging (`Path`): The folder the files were written to, on the same file system.
        folder (`Path`): Their destination; folders below it are created.
        last (`str`, *optional*): Name of the file to move last, so that a folder that has it is complete.

    Raises:
        OSError: If a file cannot be moved; those before it have been.
    """
    files = sorted((path for path in staging.rglob("*") if path.is_file()), key=lambda path: (path.name == last, path))
    for file in files:
        target = folder / file.relative_to(staging)
        target.parent.mkdir(parents=True, exist_ok=True)
        open_permissions(file)
        os.replace(file, target)


# Fields that recipes did not have at first. At their defaults they are left out of hashes, so that what an earlier
# version has finished counts as finished.
LATER_FIELDS = {"reduced_decoding": True}


def hash_settings(settings: Any) -> str:
    """Hash plain settings, whatever the order of their keys, to 8 hexadecimal digits."""
    kept = _without_later_fields(settings)
    return hashlib.sha256(json.dumps(kept, sort_keys=True, default=str).encode()).hexdigest()[:8]


def _without_later_fields(settings: Any) -> Any:
    if isinstance(settings, dict):
        kept = {k: v for k, v in settings.items() if k not in LATER_FIELDS or v != LATER_FIELDS[k]}
        return {k: _without_later_fields(v) for k, v in kept.items()}
    return [_without_later_fields(v) for v in settings] if isinstance(settings, (list, tuple)) else settings


def hash_tensors(settings: Any, tensors: Mapping[str, "torch.Tensor"]) -> str:
    """Hash tensors by name, type, shape and content, together with settings.

    Args:
        settings: Plain settings that the tensors do not show.
        tensors (`Mapping[str, torch.Tensor]`): A state dict, on any device.

    Returns:
        `str`: 16 hexadecimal digits.
    """
    import torch

    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def is_claimed(folder: Path) -> bool:
    """Tell whether a folder's claim has been renewed within the time after which it expires."""
    try:
        return time.time() - (folder / CLAIM_FILE).stat().st_mtime < CLAIM_SECONDS
    except FileNotFoundError:
        return False


class FolderClaim:
    """A claim on a folder that several launches share, perhaps on several machines: one holds it, the others wait.

    The claim is a lease of `filelock`: its holder renews it every few seconds. The claim of a process that no longer
    runs on this machine is taken over at once; any other that has not been renewed for `seconds`, by the waiting
    process's own clock, is taken over then. Waiting therefore needs one object that tries again and again.

    Args:
        folder (`Path`): The folder; it is created if it does not exist.
        seconds (`float`, defaults to 60): Time without renewal after which the claim expires, the same for all.
        beat_seconds (`float`, defaults to 5): Time between two renewals.

    Example:
    ```python
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> first, second = FolderClaim(folder), FolderClaim(folder)
    >>> first.acquire(), second.acquire()
    (True, False)
    >>> first.release()
    >>> second.acquire()
    True
    >>> second.release()

    ```
    """

    def __init__(self, folder: Path, *, seconds: float = CLAIM_SECONDS, beat_seconds: float = BEAT_SECONDS) -> None:
        self.folder, self.seconds = Path(folder), seconds
        self._lease = SoftFileLease(
            self.folder / CLAIM_FILE, lease_duration=seconds, heartbeat_interval=beat_seconds, thread_local=False
        )
        self._seen: tuple[object, float] = (None, 0.0)

    def acquire(self) -> bool:
        """Take the claim if it is free or has expired, and return `True` if this object now holds it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for _ in range(2):
            try:
                self._lease.acquire(blocking=False)
                return True
            except Timeout:
                if not self._remove_expired():
                    return False
        return False

    def wait(self, poll_seconds: float = 1.0) -> None:
        """Wait until this object holds the claim."""
        while not self.acquire():
            time.sleep(poll_seconds)

    def take(self, poll_seconds: float = 0.5) -> bool:
        """Take the claim unless its holder is alive, and return `True` if this process now holds it.

        A holder on this machine is alive if its process runs. One on another machine is watched until it renews its
        claim, which shows that it is, or until the claim expires.
        """
        if self.acquire() or self._lease.is_lock_held_by_us:  # perhaps through another object, further up
            return True
        owner, first = self._lease.owner, self._renewed()
        if owner is not None and owner.hostname.partition("?")[0] == socket.gethostname():
            return False
        while not self.acquire():
            time.sleep(poll_seconds)
            if self._renewed() != first:
                return False
        return True

    def _renewed(self) -> int | None:
        """Return when the claim was renewed last, by the clock of the file system."""
        with suppress(FileNotFoundError):
            return os.stat(self._lease.lock_file).st_mtime_ns
        return None

    def release(self) -> None:
        """Give the claim up; do nothing if it is not held or another process has taken it over."""
        self._lease.release()

    def check(self) -> None:
        """Check that the claim is still held.

        Raises:
            RunError: If another process has taken it over, for example after this one was suspended for long.
        """
        if self._lease.compromise is not None or not self._lease.is_lock_held_by_us:
            raise RunError(
                f"{self.folder} was taken over by {self.holder() or 'another process'} while this process was "
                "suspended; the work continues there."
            )

    def holder(self) -> str | None:
        """Describe the process that holds the claim; `None` if there is none."""
        owner = self._lease.owner
        return None if owner is None else f"process {owner.pid} on {owner.hostname.partition('?')[0]}"

    def _remove_expired(self) -> bool:
        """Remove a claim that has long expired, where the file system cannot swap two names (NFS, SMB).

        `filelock` takes an expired claim over by such a swap, and does nothing without it. A second process that
        removes the claim at the same moment is noticed by `check`.
        """
        try:
            found = os.lstat(self._lease.lock_file)
        except FileNotFoundError:
            return False
        state, now = (found.st_ino, found.st_mtime_ns, found.st_ctime_ns), time.monotonic()
        if state != self._seen[0]:
            self._seen = (state, now + self.seconds * (1.5 + 0.5 * random.random()))  # not all at one moment
        if now < self._seen[1]:
            return False
        self._lease.force_break()
        return True
