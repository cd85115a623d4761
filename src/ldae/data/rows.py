"""Rows of sources that can be read in any order: undecoded, decoded to a batch, and hashed; columns of tensors."""

import hashlib
from collections import Counter
from contextlib import suppress
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import List, Value

from .batch import Batch, Decoder, WorkerBatch, make_batch, make_labels
from .decode import UnreadableImageError, read_bytes
from .sources import ImageSource


HASHED_ROWS = 64  # enough to tell data sets apart; reading every row would take as long as encoding it


def read_rows(source: ImageSource, rows: list[int]) -> tuple[list[Any], list[int]]:
    """Read undecoded images (or cached latents) and labels of some rows."""
    table = source.dataset[rows]
    column = table.column(source.image_column)
    records = column.to_pylist() if source.latent_cache is None else _nested_arrays(column)
    if source.label_column is None:
        return records, [-1] * len(records)
    return records, make_labels(table.column(source.label_column).to_pylist())


def read_labels(source: ImageSource) -> list[int]:
    """Read the labels of all rows of a source that has a label column; -1 for a row without one."""
    return make_labels(source.dataset.with_format(None)[source.label_column][:])


def decode_rows(
    source: ImageSource, decoder: Decoder, rows: list[int], records: list[Any], labels: list[int], skip: int = 0
) -> WorkerBatch:
    """Decode the readable rows, a random crop at position row + `skip`; the batch may be empty."""
    counts: Counter[str] = Counter()
    decoded = [decoder(record, counts, row + skip) for record, row in zip(records, rows, strict=True)]
    images = [pixels for pixels in decoded if pixels is not None]
    if not images:
        empty = torch.zeros((0, decoder.num_channels, decoder.size, decoder.size), dtype=torch.uint8)
        return WorkerBatch(Batch(empty, torch.zeros(0, dtype=torch.int64), None), counts)
    kept = [i for i, pixels in enumerate(decoded) if pixels is not None]
    kept_labels = None if source.label_column is None else [labels[i] for i in kept]
    return WorkerBatch(make_batch(images, [rows[i] for i in kept], kept_labels), counts)


def spread_rows(source: ImageSource, most: int) -> list[int]:
    """Choose at most so many rows, spread over the source."""
    count = len(source.dataset)
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int)).tolist()


def hash_source(source: ImageSource) -> str:
    """Hash the undecoded images and labels of rows spread over the source, whatever its files are called."""
    digest = hashlib.sha256()
    for record, label in zip(*read_rows(source, spread_rows(source, HASHED_ROWS)), strict=True):
        content = b""
        with suppress(UnreadableImageError):  # counted where the image is decoded
            content = read_bytes(record)
        digest.update(f"{label} {len(content)} ".encode())
        digest.update(content)
    return digest.hexdigest()[:16]


def nested_feature(shape: tuple[int, ...], dtype: str) -> Any:
    """Return the type that `datasets` has for a column of tensors of one shape."""
    feature: Any = Value(dtype)
    for length in reversed(shape):
        feature = List(feature, length=length)
    return feature


def nested_column(values: np.ndarray, missing: np.ndarray | None = None) -> pa.FixedSizeListArray:
    """Build a column of b rows from tensors `(b, *shape)` without a copy; `missing` `(b,)` marks rows without one."""
    column = pa.array(values.reshape(-1))
    for length in values.shape[:1:-1]:
        column = pa.FixedSizeListArray.from_arrays(column, length)
    mask = None if missing is None else pa.array(missing)
    return pa.FixedSizeListArray.from_arrays(column, values.shape[1], mask=mask)


def _nested_arrays(column: pa.ChunkedArray) -> list[np.ndarray | None]:
    """Read the rows of a column of tensors as arrays; a missing row is `None`."""
    values = column.combine_chunks()
    present, shape = values.is_valid().to_pylist(), []
    while pa.types.is_fixed_size_list(values.type):
        shape.append(values.type.list_size)
        values = values.flatten()  # without missing rows
    arrays = iter(values.to_numpy().reshape(-1, *shape))
    return [next(arrays) if there else None for there in present]
