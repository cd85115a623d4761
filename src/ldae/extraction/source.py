"""Feature tables in place of images: probes read what extract_features wrote."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import ClassLabel
from datasets import Features as Columns

from ldae.checkpoints import hash_weights
from ldae.data.batch import make_labels
from ldae.data.columns import find_label_column
from ldae.data.sources import HELD_OUT, held_out_split
from ldae.errors import one_line
from ldae.evaluation.encoder import Layer
from ldae.evaluation.features import Features, StoredFeatures, stack_layers
from ldae.files import AnyPath
from ldae.remote import open_folder

from .folder import MAKE_AGAIN, is_damage, read_complete, table_files
from .reader import column_name
from .rows import FEATURES, ROW


READ_ROWS = 4096  # at a time


@dataclass(frozen=True)
class FeatureTable(StoredFeatures):
    """The features of one split, from a table of [`~ldae.extraction.table.extract_table`].

    Args:
        folder (`Path` or `UPath`): The table's folder.
        noted (`dict`): Content of its `extraction.json`.
        label_column (`str`, *optional*): Column of the labels.
        class_names (`list[str]`, *optional*): Names of the classes.
        held_out (`bool`, *optional*): Only every tenth row (`True`) or only the others (`False`); by default all rows.
    """

    folder: AnyPath
    noted: dict[str, Any]
    label_column: str | None
    class_names: list[str] | None
    held_out: bool | None = None

    @property
    def name(self) -> str:  # type: ignore[override]
        """The data set, with its configuration if it has several."""
        data = self.noted.get("data")  # only tables that the command wrote note it
        if data is None:
            return self.noted["source"]
        return data["dataset"] if data["dataset_config"] is None else f"{data['dataset']}, {data['dataset_config']}"

    @property
    def split(self) -> str:  # type: ignore[override]
        """The split, and which of its rows."""
        split = self.noted.get("data", self.noted)["split"]
        return split if self.held_out is None else held_out_split(split, self.held_out)

    @property
    def description(self) -> str:
        """The table in words, for messages."""
        return f"features={self.folder} of {self.name} ({self.split})"

    @property
    def columns(self) -> dict[tuple[Layer | None, int | None], str]:
        """The column of each layer and time step."""
        layers, timesteps = (self.noted[name] or [None] for name in ("layers", "timesteps"))
        places = [(layer, timestep) for layer in layers for timestep in timesteps]
        return {place: FEATURES if len(places) == 1 else column_name(*place) for place in places}

    @property
    def files(self) -> list[Any]:
        """Its parquet files, in the order of the data set."""
        return table_files(self.folder)

    def read(
        self,
        layers: Sequence[Layer | None],
        timesteps: Sequence[int | None],
        *,
        noisy: bool,
        seed: int,
        dtype: torch.dtype | None,
    ) -> Iterator[Features]:
        """Read features in pieces; see [`~ldae.evaluation.features.StoredFeatures.read`]."""
        columns = self._find(layers, timesteps)
        asked = {"noisy": noisy, "compute_dtype": str(dtype or torch.float32).removeprefix("torch.")}
        for name, value in (asked | ({"seed": seed} if noisy else {})).items():
            if self.noted[name] != value:
                raise ValueError(
                    f"{self.description} have {name}={self.noted[name]}, not {value}; make another table."
                )
        begin = 0
        others = [ROW, *([] if self.label_column is None else [self.label_column])]
        for path in self.files:
            with path.open("rb") as stream:
                file = pq.ParquetFile(stream)
                try:
                    batches = list(file.iter_batches(READ_ROWS, columns=[*others, *columns]))
                except OSError as error:
                    if not is_damage(error, path):
                        raise
                    raise ValueError(f"{path} is damaged ({one_line(error)[:200]}); {MAKE_AGAIN}") from error
            for rows in batches:
                selected = self._selected(rows)
                if not len(selected):
                    continue
                # Columns come layer by layer, and for each of them time step by time step.
                values = stack_layers([self._vectors(selected, name) for name in columns])
                values = values.unflatten(0, (len(layers), len(timesteps))).permute(2, 0, 1, 3)  # (b, L, T, C)
                labels = None
                if self.label_column is not None:
                    labels = torch.tensor(make_labels(selected.column(self.label_column).to_pylist()))
                positions = begin + torch.arange(len(values))
                yield Features(values, labels, tuple(layers), tuple(timesteps), positions)
                begin += len(values)

    def check_checkpoint(self, checkpoint: str | os.PathLike[str]) -> None:
        """Check that the features are those of a checkpoint's weights.

        Raises:
            ValueError: If they are not, or the table does not tell.
        """
        if self.noted.get("weights") != hash_weights(checkpoint):
            known = "weights" in self.noted
            told = f"by {self.noted.get('checkpoint')!r}" if known else "by weights that it does not name"
            raise ValueError(
                f"features={self.folder} were computed {told}, not by the weights of checkpoint={str(checkpoint)!r}; "
                "make a table of these with extract_features."
            )

    def _find(self, layers: Sequence[Layer | None], timesteps: Sequence[int | None]) -> list[str]:
        columns = self.columns
        places = [(layer, timestep) for layer in layers for timestep in timesteps]
        for place in places:
            if place not in columns:
                there = [f"layer {layer} at t = {timestep}" for layer, timestep in columns]
                raise ValueError(
                    f"features={self.folder} have {', '.join(there)}, not layer {place[0]} at t = {place[1]}; choose "
                    "with --layers and --timesteps, or make a table with these."
                )
        return [columns[place] for place in places]

    def _selected(self, rows: pa.RecordBatch) -> pa.RecordBatch:
        if self.held_out is None:
            return rows
        last = rows.column(ROW).to_numpy() % HELD_OUT == HELD_OUT - 1
        return rows.filter(pa.array(last == self.held_out))

    def _vectors(self, rows: pa.RecordBatch, column: str) -> torch.Tensor:
        """Read a column of features `(b, C)`."""
        values = rows.column(column).flatten().to_numpy(zero_copy_only=False).reshape(len(rows), -1)
        if not np.isfinite(values).all():
            bad = rows.column(ROW).to_numpy()[~np.isfinite(values).all(axis=1)]
            raise ValueError(
                f"{self.description} have values in {column} that are not finite numbers, in row {bad[0]} and "
                f"{len(bad) - 1} more of these {len(rows)}; make the table anew, without --mixed_precision bf16."
            )
        return torch.tensor(values)


def open_feature_tables(
    folders: Sequence[str | os.PathLike[str]], label_column: str | None = None
) -> tuple[FeatureTable, FeatureTable]:
    """Open the features that probes train on and those they are scored on.

    Args:
        folders (`Sequence`): The tables, here or behind addresses, of the training images and of the test images; or
            one, of whose rows every tenth is held out, as of images without a test split.
        label_column (`str`, *optional*): Column of the labels; by default the one of the type class label.

    Returns:
        The training and the test features.

    Raises:
        ValueError: If one is no complete table of pooled float32 features, or they do not belong together.
    """
    if len(folders) not in (1, 2):
        raise ValueError(
            f"features={list(map(str, folders))} must be one folder, or those of training and test images."
        )
    tables = [_open_table(open_folder(folder, "features"), label_column) for folder in folders]
    train, test = tables[0], tables[-1]
    if len(tables) == 1:
        if train.noted["streaming"] or train.noted["noisy"]:
            kind = "of a stream" if train.noted["streaming"] else "of noisy images"
            raise ValueError(f"{train.description} are {kind}; give a second table, of the test images.")
        return replace(train, held_out=False), replace(test, held_out=True)
    if (train.name, train.split) == (test.name, test.split):
        raise ValueError(
            f"features={test.folder} and {train.folder} are both of {train.name} ({train.split}), and scores on "
            "training rows show nothing; give one of them alone to hold out every tenth row."
        )
    for name in ("weights", "layers", "timesteps", "noisy", "compute_dtype"):
        ours, theirs = train.noted.get(name), test.noted.get(name)
        if ours != theirs:
            raise ValueError(
                f"features={test.folder} have {name}={theirs}, and {train.folder} {ours}; make both alike."
            )
    return train, test


def _open_table(folder: AnyPath, label_column: str | None) -> FeatureTable:
    try:
        noted = read_complete(folder)
    except ValueError as error:
        raise ValueError(f"features={folder}: {error}") from error
    if noted["pool"] != "mean":
        raise ValueError(f"features={folder} holds features of all places; make a table with --pool mean.")
    if noted.get("joined"):
        raise ValueError(f"features={folder} holds joined features of several layers; make a table without --join.")
    table = FeatureTable(folder, noted, None, None)
    with table.files[0].open("rb") as stream:
        schema = pq.read_schema(stream)
    missing = [name for name in table.columns.values() if name not in schema.names]
    if missing:
        raise ValueError(f"features={folder} has no column {missing[0]!r}; make the table anew with extract_features.")
    if any("float16" in noted["columns"][name] for name in table.columns.values()):
        raise ValueError(
            f"features={folder} holds float16, and probes read float32; make a table with --dtype float32."
        )
    columns = Columns.from_arrow_schema(schema)
    label = find_label_column(Columns({k: v for k, v in columns.items() if k != ROW}), label_column)
    kind = None if label is None else columns[label]
    return replace(table, label_column=label, class_names=list(kind.names) if isinstance(kind, ClassLabel) else None)
