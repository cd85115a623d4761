"""Writing files so that no reader ever sees half of one."""

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
