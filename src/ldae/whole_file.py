"""Writing text files so that no reader ever sees half of one."""

import os
from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """
    Write beside and rename: a reader, a kill or a hard link to the old file meets the old text or the new.

    Args:
        path (`Path`): The file; its folder exists.
        text (`str`): Its content, written as UTF-8 with `\\n` at line ends.

    Raises:
        OSError: if it cannot be written; the old file then stands.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8", newline="\n")
    os.replace(temporary, path)
