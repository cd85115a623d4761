"""The folder of a feature table: what it was made from, which shards it has, and how one is written."""

import json
import math
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Features

from ldae.data.rows import nested_column
from ldae.errors import one_line
from ldae.files import AnyPath, FolderName
from ldae.remote import open_folder
from ldae.shards import ShardFolder, ShardWriter
from ldae.shards import choose_rows_per_shard as choose_rows

from .rows import Piece, Shard


IDENTITY_FILE = "extraction.json"
DATA_FOLDER = "data"
FOOTER = b"ldae"  # key of a shard's metadata in its parquet footer
ROW_GROUP_BYTES = 2**25  # features held in memory before they are written, about
SHARD_BYTES = 2**28
# Entries of the identity file that are read again, with their types.
NOTED: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("model", "pixels", "split", "pool", "compute_dtype", "source"), (str,)),
    **dict.fromkeys(("layers", "timesteps"), (list, type(None))),
    **dict.fromkeys(("noisy", "streaming"), (bool,)),
    **dict.fromkeys(("seed", "rows_per_shard", "num_parts"), (int,)),
    "columns": (dict,),
    "num_examples": (int, type(None)),
    "checkpoint": (str, type(None)),  # of extract_features alone
}
MAKE_AGAIN = "remove the file and repeat the command of extract_features, which writes it anew."


@dataclass(frozen=True)
class FeatureFolder:
    """A folder with a feature table."""

    path: AnyPath
    split: str  # its name in datasets, with which the files begin
    streaming: bool  # made from a stream, whose shards are numbered part by part

    @property
    def shards(self) -> ShardFolder:
        """The folder as shards with an identity."""
        return ShardFolder(self.path, "output_dir", "features", IDENTITY_FILE)

    def shard_path(self, shard: Shard) -> AnyPath:
        """Return the file of a shard; files sorted by name hold the rows in the order of the data set."""
        place = f"{shard[0]:05d}-{shard[1]:05d}" if self.streaming else f"{shard[1]:05d}"
        return self.path / DATA_FOLDER / f"{self.split}-{place}.parquet"

    def finished(self, columns: Mapping[str, str], number: int | None = None) -> dict[Shard, dict[str, Any]]:
        """Find the written shards, with the rows read, kept and skipped of each, and whether it ends its part.

        Args:
            columns (`Mapping[str, str]`): The type of each column, in words.
            number (`int`, *optional*): Look only for the shard of this number, or for those of the part of a stream.

        Raises:
            ValueError: If one is damaged or has other columns.
        """
        found = {}
        place = "" if number is None else f"{number:05d}"
        for path in table_files(self.path, f"{self.split}-{place}*.parquet"):
            match = re.fullmatch(rf"{re.escape(self.split)}-(?:(\d+)-)?(\d+)\.parquet", path.name)
            if match is not None:
                found[int(match[1] or 0), int(match[2])] = _read_footer(path, columns)
        return found

    def finish(self, shards: Sequence[dict[str, Any]]) -> None:
        """Add the totals over all shards to the identity file, and remove what killed starts left."""
        counts: Counter[str] = Counter()
        for shard in shards:
            counts.update(shard["counts"])
        noted = read_identity(self.path) | {
            "rows": sum(shard["kept"] for shard in shards),
            "skipped": [skip for shard in shards for skip in shard["skipped"]],
            "counts": dict(counts),
        }
        self.shards.write_identity(noted)
        self.shards.clear(f"{DATA_FOLDER}/.*.parquet.*")


class FeatureShardWriter(ShardWriter):
    """Writer of one shard of a feature table: a file of `table_columns`, of which `columns` hold features."""

    def __init__(self, path: AnyPath, table_columns: Features, columns: Collection[str], dtype: str) -> None:
        self.columns, self.schema, self.dtype = columns, table_columns.arrow_schema, dtype
        others = [name for name in self.schema.names if name not in columns]
        super().__init__(path, lambda p: pq.ParquetWriter(p, self.schema, compression="zstd", use_dictionary=others))
        self.held: list[pa.Table] = []
        self.rows, self.skipped = 0, list[dict[str, Any]]()
        self.counts: Counter[str] = Counter()

    def add(self, piece: Piece, values: dict[str, torch.Tensor]) -> None:
        """Add the next rows, with their features `(b, *shape)` by column."""
        self.rows += piece.num_rows
        self.skipped += piece.skipped
        self.counts.update(piece.counts)
        if not len(piece.table):
            return
        arrays = dict(zip(piece.table.schema.names, piece.table.columns, strict=True))
        for name in self.columns:
            with np.errstate(over="ignore"):
                numbers = values[name].float().cpu().numpy().astype(self.dtype, copy=False)
            if not np.isfinite(numbers).all():
                raise ValueError(f"dtype={self.dtype!r} cannot hold the largest {name}; give --dtype float32.")
            arrays[name] = nested_column(numbers).cast(self.schema.field(name).type)
        self.held.append(pa.table([arrays[name] for name in self.schema.names], schema=self.schema))
        if sum(table.nbytes for table in self.held) >= ROW_GROUP_BYTES:
            self._write_row_group()

    def finish_shard(self, ends_part: bool) -> None:
        """Write what is held and the footer, and give the file its name."""
        self._write_row_group()
        footer = {"read": self.rows, "skipped": self.skipped, "counts": dict(self.counts), "ends_part": ends_part}
        self.writer.add_key_value_metadata({FOOTER: json.dumps(footer).encode()})
        self.finish()

    def _write_row_group(self) -> None:
        if self.held:
            self.writer.write_table(pa.concat_tables(self.held).combine_chunks())
            self.held = []


def _read_footer(path: AnyPath, columns: Mapping[str, str]) -> dict[str, Any]:
    """Read what a shard says of itself, and check that it holds that."""
    try:
        with path.open("rb") as stream:
            file = pq.ParquetFile(stream)
            metadata, schema = file.metadata, file.schema_arrow
        footer = json.loads((metadata.metadata or {}).get(FOOTER, b"{}"))
        kept = footer["read"] - len(footer["skipped"])
        found = {name: str(kind) for name, kind in Features.from_arrow_schema(schema).items()}
    except Exception as error:  # damaged bytes make pyarrow raise almost anything
        if not is_damage(error, path):
            raise
        raise ValueError(f"{path} is damaged ({one_line(error)[:200]}); {MAKE_AGAIN}") from error
    if kept != metadata.num_rows:
        raise ValueError(f"{path} has {metadata.num_rows} rows, not the {kept} it was written with; {MAKE_AGAIN}")
    if found != columns:
        names = [name for name in {**found, **columns} if found.get(name) != columns.get(name)]
        raise ValueError(f"{path} differs in its columns ({', '.join(names)}) from its table; {MAKE_AGAIN}")
    return footer | {"kept": kept}


def is_damage(error: Exception, path: AnyPath) -> bool:
    """Tell whether an error of reading a shard comes from its bytes, and not from the network."""
    return isinstance(path, Path) or isinstance(error, (pa.ArrowException, ValueError, LookupError, TypeError))


def read_identity(folder: FolderName) -> dict[str, Any]:
    """Read what a feature table was made from.

    Raises:
        ValueError: If the folder holds no table, or the file does not describe one.
    """
    path = open_folder(folder, "folder")
    noted = ShardFolder(path, "folder", "features", IDENTITY_FILE).identity()
    if noted is None:
        raise ValueError(
            f"{str(folder)!r} holds no features ({IDENTITY_FILE} is missing); make them with extract_features."
        )
    for name, kinds in NOTED.items():
        value = noted.get(name)
        if not isinstance(value, kinds) or (int in kinds and isinstance(value, bool)):
            raise ValueError(
                f"{path / IDENTITY_FILE} is damaged ({name}={value!r}); restore it, or make the table anew "
                "with extract_features in an empty folder."
            )
    return noted


def read_complete(folder: FolderName) -> dict[str, Any]:
    """Read what a feature table was made from, and check that all of it is there.

    Raises:
        ValueError: If the folder holds no table, or an incomplete or damaged one.
    """
    path = open_folder(folder, "folder")
    noted = read_identity(path)
    if "rows" not in noted:
        raise ValueError(f"{str(folder)!r} is not complete; repeat the command of extract_features.")
    shards = FeatureFolder(path, noted["split"], noted["streaming"]).finished(noted["columns"])
    rows = sum(shard["kept"] for shard in shards.values())
    if rows != noted["rows"]:
        raise ValueError(
            f"{str(folder)!r} has {rows} of its {noted['rows']} rows; repeat the command of extract_features, which "
            "writes what is missing."
        )
    return noted


def table_files(folder: AnyPath, pattern: str = "[!.]*.parquet") -> list[Any]:
    """List the files of a table whose names match a pattern, in the order of the data set."""
    data = folder / DATA_FOLDER
    if not isinstance(folder, Path):
        folder.fs.invalidate_cache()  # other processes write there too
    paths = data.iterdir() if data.exists() else ()  # UPath.glob would take the folder's own name for a pattern
    return sorted((path for path in paths if fnmatchcase(path.name, pattern)), key=lambda path: path.name)


def choose_rows_per_shard(columns: dict[str, tuple[int, ...]], dtype: str, num_examples: int | None) -> int:
    """Choose the rows of a shard: at most 8,192 and 256 MiB, fewer for a small data set."""
    row_bytes = np.dtype(dtype).itemsize * sum(math.prod(shape) for shape in columns.values())
    return max(1, min(choose_rows(num_examples), SHARD_BYTES // row_bytes))
