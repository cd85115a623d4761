"""Rows of sources that can be read in any order: undecoded, decoded to a batch, and hashed."""

import hashlib
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .batch import Batch, Decoder, WorkerBatch, make_batch, make_labels
from .nested_lists import nested_arrays
from .sources import ImageSource


HASHED_ROWS = 64  # enough to tell data sets apart; reading every row would take as long as encoding it


def read_rows(source: ImageSource, rows: list[int]) -> tuple[list[Any], list[int]]:
    """Read undecoded images (or cached latents) and labels of some rows."""
    table = source.dataset[rows]
    column = table.column(source.image_column)
    records = column.to_pylist() if source.latent_cache is None else nested_arrays(column)
    if source.label_column is None:
        return records, [-1] * len(records)
    return records, make_labels(table.column(source.label_column).to_pylist())


def decode_rows(
    source: ImageSource, decoder: Decoder, rows: list[int], records: list[Any], labels: list[int], skip: int = 0
) -> WorkerBatch:
    """Decode the readable rows, a random crop at position row + `skip`; the batch may be empty."""
    counts: Counter[str] = Counter()
    images_of_rows = (decoder(record, counts, row + skip) for record, row in zip(records, rows, strict=True))
    decoded = zip(images_of_rows, rows, labels, strict=True)
    kept = [(pixels, row, label) for pixels, row, label in decoded if pixels is not None]
    if not kept:
        empty = np.zeros((0, decoder.num_channels, decoder.size, decoder.size), np.uint8)
        return WorkerBatch(Batch(torch.from_numpy(empty), torch.zeros(0, dtype=torch.int64), None), counts)
    images, kept_rows, kept_labels = zip(*kept, strict=True)
    has_labels = source.label_column is not None
    return WorkerBatch(make_batch(list(images), kept_rows, list(kept_labels) if has_labels else None), counts)


def hash_source(source: ImageSource) -> str:
    """Hash the undecoded images and labels of rows spread over the source, whatever its files are called."""
    count = len(source.dataset)
    rows = np.unique(np.linspace(0, count - 1, min(count, HASHED_ROWS)).astype(int)).tolist()
    digest = hashlib.sha256()
    for record, label in zip(*read_rows(source, rows), strict=True):
        content = record.get("bytes") if isinstance(record, dict) else record
        if content is None and isinstance(record, dict) and record.get("path") is not None:
            with suppress(OSError):  # counted where the image is decoded
                content = Path(record["path"]).expanduser().read_bytes()
        digest.update(f"{label} {len(content or b'')} ".encode())
        digest.update(content or b"")
    return digest.hexdigest()[:16]
