"""Tables in shards that several processes write, and a killed start leaves to the next."""

import json
import os
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from ldae.files import AnyPath, make_folder, write_whole


SHARDS, LEAST_ROWS, MOST_ROWS = 64, 256, 8192  # enough shards for many processes, enough rows for whole batches


@dataclass(frozen=True)
class ShardFolder:
    """A folder of shards, and a JSON file that identifies what they were made from.

    A shard exists whole or not at all, so a killed start is continued by the next, with any number of processes.

    Args:
        path (`Path`): The folder.
        option (`str`): The option that names the folder, for messages.
        content (`str`): What the shards hold, for messages: "latents".
        identity_file (`str`): Name of the JSON file.
    """

    path: AnyPath
    option: str
    content: str
    identity_file: str

    def identity(self) -> dict[str, Any] | None:
        """Read what the shards were made from; `None` if nothing was begun here.

        Raises:
            ValueError: If the file is damaged.
        """
        file = self.path / self.identity_file
        if not file.is_file():
            return None
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            if not isinstance(content, dict):
                raise ValueError("it is no mapping")
        except ValueError as error:
            raise ValueError(f"{file} is damaged ({error}); restore it, or give an empty folder.") from error
        return content

    def claim(self, identity: dict[str, Any], notes: dict[str, Any]) -> None:
        """Write the identity file, or check that it says the same.

        Args:
            identity (`dict`): What the shards are made from, and how.
            notes (`dict`): Further entries, such as paths, in which a later start may differ; the first start's are
                kept.

        Raises:
            ValueError: If the folder holds other files, or shards made from something else.
        """
        make_folder(self.path)
        noted = self.identity()
        if noted is None:
            entries = self.path.iterdir() if self.path.exists() else ()
            names = sorted(entry.name for entry in entries if not entry.name.startswith("."))
            if self.identity_file in names and (self.path / self.identity_file).is_file():
                self.claim(identity, notes)  # another process has written it in this moment
                return
            if names:
                raise ValueError(
                    f"{self.option}={str(self.path)!r} holds other files ({', '.join(names[:3])}); give an empty "
                    "folder."
                )
            self.write_identity({**notes, **identity})
            return
        changed = [
            f"{name} differ" if isinstance(value, dict) else f"{name} was {noted.get(name)} and is {value}"
            for name, value in identity.items()
            if noted.get(name) != value
        ]
        if changed:
            raise ValueError(
                f"{self.option}={str(self.path)!r} holds {self.content} with other settings ({'; '.join(changed)}); "
                "give another folder, or the former settings."
            )

    def write_identity(self, content: dict[str, Any]) -> None:
        """Write the identity file."""
        write_whole(self.path / self.identity_file, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def clear(self, pattern: str) -> None:
        """Remove the unfinished shards of killed starts, `.NAME.*` for each name that matches a glob pattern."""
        for left in self.path.glob(pattern) if isinstance(self.path, Path) else ():
            left.unlink(missing_ok=True)


class ShardWriter:
    """Writer of one shard, under a hidden name until it is whole.

    As a context manager it discards the shard on an error. A shard of an object store is written to a nameless
    temporary file, and uploaded when it is whole.

    Args:
        path (`Path` or `UPath`): The shard's file.
        open_writer (`Callable[[Any], Any]`): Opens a pyarrow writer (`write_table`, `close`) on a path or a file.
    """

    def __init__(self, path: AnyPath, open_writer: Callable[[Any], Any]) -> None:
        self.path = path
        self.partial: Path | None = None
        self.upload: Any = None
        if isinstance(path, Path):
            self.partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")  # two runs may write the same shard
            self.writer = open_writer(str(self.partial))
        else:
            self.upload = tempfile.TemporaryFile()  # noqa: SIM115 - it ends with the process, however that ends
            self.writer = open_writer(self.upload)

    def finish(self) -> None:
        """Close the file and give it its name."""
        self.writer.close()
        if not isinstance(self.path, Path):
            self.upload.seek(0)
            self.path.fs.pipe_file(self.path.path, self.upload.read())
            self.upload.close()
            return
        try:
            os.replace(str(self.partial), self.path)
        except FileNotFoundError:
            if not self.path.is_file():  # otherwise another run finished the same shard first and cleaned up
                raise

    def discard(self) -> None:
        """Remove what was written."""
        self.writer.close()
        if self.partial is None:
            self.upload.close()
        else:
            self.partial.unlink(missing_ok=True)

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.finish()
        else:
            self.discard()


def choose_rows_per_shard(count: int | None) -> int:
    """Choose the rows of a shard: a 64th of all, from 256 to 8,192."""
    return MOST_ROWS if count is None else min(max(-(-count // SHARDS), LEAST_ROWS), MOST_ROWS)


def shard_ranges(count: int, rows_per_shard: int) -> list[range]:
    """Divide rows into shards."""
    return [range(i, min(i + rows_per_shard, count)) for i in range(0, count, rows_per_shard)]
