"""The folder of a feature table: whose it is, which of its shards are written, and how one is written whole or not at all."""

import json
import os
import re
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Features, List, Value

from ldae.files import write_whole

from .reader import FeatureColumn
from .rows import Piece, Shard


IDENTITY_FILE = "extraction.json"
DATA_FOLDER = "data"
FOOTER = b"ldae"  # key of what a shard's file says of itself, beside its rows
ROW_GROUP_BYTES = 2**25  # of features, about; what is held in memory before it is written
SHARD_BYTES = 2**28
SHARDS, LEAST_ROWS, MOST_ROWS = 64, 256, 8192  # shards enough for many processes, rows enough for whole batches


@dataclass(frozen=True)
class FeatureFolder:
    """
    A folder with a feature table.

    Args:
        path (`Path`): The folder.
        split (`str`): Name of the split that its files are.
        streaming (`bool`): Whether the table is of a stream, whose shards are numbered part by part.
    """

    path: Path
    split: str
    streaming: bool

    def claim(self, identity: dict[str, Any], notes: dict[str, Any]) -> None:
        """
        Note what the table is of, or see that it is the same as noted. `notes` stand beside it and may differ later.

        Raises:
            ValueError: where the folder holds other files, or a table with other settings; the message says which.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        names = [entry.name for entry in self.path.iterdir() if not entry.name.startswith(".")]
        if IDENTITY_FILE not in names:
            if names:
                raise ValueError(
                    f"output_dir={str(self.path)!r} holds other files ({', '.join(sorted(names)[:3])}); give an empty "
                    "folder."
                )
            (self.path / DATA_FOLDER).mkdir()
            write_whole(self.path / IDENTITY_FILE, _as_json({**notes, **identity}))
            return
        noted = read_identity(self.path)
        changed = [
            f"{name} was {noted.get(name)} and is {now}" for name, now in identity.items() if noted.get(name) != now
        ]
        if changed:
            raise ValueError(
                f"output_dir={str(self.path)!r} holds features with other settings ({'; '.join(changed)}); give another "
                "folder, or the former settings."
            )
        (self.path / DATA_FOLDER).mkdir(exist_ok=True)  # of a start that was killed in between

    def shard_path(self, shard: Shard) -> Path:
        """The file of a shard; in the order of the names, files have the rows in the order of the data set."""
        place = f"{shard[0]:05d}-{shard[1]:05d}" if self.streaming else f"{shard[1]:05d}"
        return self.path / DATA_FOLDER / f"{self.split}-{place}.parquet"

    def finished(self) -> dict[Shard, dict[str, Any]]:
        """The shards that are written, and what each says of itself: rows read and kept, skips, whether its part ends."""
        found = {}
        for path in sorted((self.path / DATA_FOLDER).glob(f"{self.split}-*.parquet")):
            match = re.fullmatch(rf"{re.escape(self.split)}-(?:(\d+)-)?(\d+)\.parquet", path.name)
            if match is not None:
                metadata = pq.read_metadata(path)
                said = json.loads((metadata.metadata or {}).get(FOOTER, b"{}"))
                found[int(match[1] or 0), int(match[2])] = said | {"kept": metadata.num_rows}
        return found

    def conclude(self, shards: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Note what all the shards hold together, and remove what killed starts left. Returns what is noted."""
        counts: Counter[str] = Counter()
        for shard in shards:
            counts.update(shard["counts"])
        noted = read_identity(self.path) | {
            "rows": sum(shard["kept"] for shard in shards),
            "skipped": [skip for shard in shards for skip in shard["skipped"]],
            "counts": dict(counts),
        }
        write_whole(self.path / IDENTITY_FILE, _as_json(noted))
        for left in (self.path / DATA_FOLDER).glob(".*.parquet.*"):
            left.unlink(missing_ok=True)
        return noted


class ShardWriter:
    """
    One shard, written beside under a hidden name and renamed when it is whole.

    Args:
        path (`Path`): The file.
        features (`datasets.Features`): Its columns, those of features last.
        columns (`dict[str, FeatureColumn]`): Those of features.
    """

    def __init__(self, path: Path, features: Features, columns: dict[str, FeatureColumn]) -> None:
        self.path, self.columns = path, columns
        self.partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")  # two runs may write the same shard
        self.schema = features.arrow_schema
        others = [name for name in self.schema.names if name not in columns]
        self.writer = pq.ParquetWriter(self.partial, self.schema, compression="zstd", use_dictionary=others)
        self.held: list[pa.Table] = []
        self.rows, self.skipped = 0, list[dict[str, Any]]()
        self.counts: Counter[str] = Counter()

    def add(self, piece: Piece, values: dict[str, torch.Tensor]) -> None:
        """The next rows, with their features `(b, *shape)` by column."""
        self.rows += piece.num_rows
        self.skipped += piece.skipped
        self.counts.update(piece.counts)
        if not len(piece.table):
            return
        arrays = dict(zip(piece.table.schema.names, piece.table.columns, strict=True))
        arrays |= {name: _nested(values[name], self.schema.field(name).type) for name in self.columns}
        self.held.append(pa.table([arrays[name] for name in self.schema.names], schema=self.schema))
        if sum(table.nbytes for table in self.held) >= ROW_GROUP_BYTES:
            self._write()

    def finish(self, ends_part: bool) -> None:
        """The shard is whole."""
        self._write()
        said = {"read": self.rows, "skipped": self.skipped, "counts": dict(self.counts), "ends_part": ends_part}
        self.writer.add_key_value_metadata({FOOTER: json.dumps(said).encode()})
        self.writer.close()
        try:
            os.replace(self.partial, self.path)
        except FileNotFoundError:
            if not self.path.is_file():  # else another run of the same was first, and cleared up
                raise

    def discard(self) -> None:
        """Nothing is to be left of it."""
        self.writer.close()
        self.partial.unlink(missing_ok=True)

    def _write(self) -> None:
        if self.held:
            self.writer.write_table(pa.concat_tables(self.held).combine_chunks())
            self.held = []


def read_identity(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """
    What a folder says its table is of.

    Raises:
        ValueError: where it holds none.
    """
    path = Path(folder) / IDENTITY_FILE
    if not path.is_file():
        raise ValueError(
            f"{str(folder)!r} holds no features ({IDENTITY_FILE} is missing); make them with extract_features."
        )
    return json.loads(path.read_text(encoding="utf-8"))


def table_features(metadata: Features, columns: dict[str, FeatureColumn], dtype: str) -> Features:
    """The columns of a table: metadata, then features as nested lists of fixed length."""
    found = {}
    for name, column in columns.items():
        kind: Any = Value(dtype)
        for length in reversed(column.shape):
            kind = List(kind, length=length)
        found[name] = kind
    return Features({**metadata, **found})


def choose_rows_per_shard(columns: dict[str, FeatureColumn], dtype: str, num_examples: int | None) -> int:
    """Rows of a shard: at most 8,192 and 256 MiB, and of a small data set few enough for several processes."""
    row_bytes = np.dtype(dtype).itemsize * sum(int(np.prod(column.shape)) for column in columns.values())
    share = MOST_ROWS if num_examples is None else max(-(-num_examples // SHARDS), LEAST_ROWS)
    return max(1, min(share, MOST_ROWS, SHARD_BYTES // row_bytes))


def _nested(values: torch.Tensor, kind: pa.DataType) -> pa.Array:
    """Features `(b, *shape)` on any device as a column of nested lists of fixed length."""
    lengths, inner = [], kind
    while pa.types.is_fixed_size_list(inner):
        lengths.append(inner.list_size)
        inner = inner.value_type
    array = values.float().cpu().contiguous().numpy().astype(inner.to_pandas_dtype(), copy=False)
    column = pa.array(array.reshape(-1), inner)
    for length in reversed(lengths):
        column = pa.FixedSizeListArray.from_arrays(column, length)
    return column.cast(kind)  # the same values; only the names of the lists' items may differ


def _as_json(content: dict[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
