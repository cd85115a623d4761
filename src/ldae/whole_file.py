"""Write files whole, so that no reader sees half of one, with the permissions that the umask says."""

import os
import socket
from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> None:
    """
    Write beside and rename: a reader, a kill or a hard link to the old file meets the old text or the new.

    Args:
        path (`Path`): The file; its folder exists.
        content (`str` or `bytes`): Its content; text is written as UTF-8 with `\\n` at line ends.

    Raises:
        OSError: if it cannot be written; the old file then stands.
    """
    temporary = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}")  # folders may be shared
    temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    os.replace(temporary, path)


def open_permissions(path: Path) -> None:
    """
    Give a file, or a folder and all in it, the permissions that the umask says.

    safetensors' writer and `tempfile` let nobody but the owner read, which shared folders are not meant for.

    Args:
        path (`Path`): The file or the folder.
    """
    umask = os.umask(0)
    os.umask(umask)
    for found in (path, *path.rglob("*")) if path.is_dir() else (path,):
        found.chmod((0o777 if found.is_dir() else 0o666) & ~umask)


def move_into(staging: Path, folder: Path, last: str | None = None) -> None:
    """
    Move all files of a folder into another, each whole, with the permissions that the umask says.

    Args:
        staging (`Path`): Where the files were written, on the same file system.
        folder (`Path`): Where they go; folders below it are made.
        last (`str`, *optional*): Name of the file that comes last, so that a folder with it is complete.

    Raises:
        OSError: if one cannot be moved; those before it have been.
    """
    files = sorted((path for path in staging.rglob("*") if path.is_file()), key=lambda path: (path.name == last, path))
    for file in files:
        target = folder / file.relative_to(staging)
        target.parent.mkdir(parents=True, exist_ok=True)
        open_permissions(file)
        os.replace(file, target)
