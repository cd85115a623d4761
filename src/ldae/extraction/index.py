"""A FAISS index of a feature table, made, kept and searched by `datasets` itself."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, load_dataset

from ldae.data import ImageSource

from .folder import read_identity
from .reader import FEATURES
from .rows import ROW, SHARD


INDEX_FOLDER = "index"
COSINE = "L2norm,Flat"  # of FAISS: vectors scaled to length 1, compared with all: inner products are cosines
MOST_TRAINED = 2**18  # vectors that an index which has to learn its cells learns them from


def open_table(folder: str | os.PathLike[str], cache_dir: str | None = None) -> Dataset:
    """A feature table, memory-mapped: what `datasets.load_dataset(folder, split=...)` gives.

    Args:
        folder (`str` or path): As [`~ldae.extraction.table.extract_table`] leaves it.
        cache_dir (`str`, *optional*): Where `datasets` keeps the table as it reads it.

    Raises:
        ValueError: where the folder holds no table, or one that is not complete.
    """
    noted = read_identity(folder)
    if "rows" not in noted:
        raise ValueError(f"{str(folder)!r} is not complete; give extract_features the same command again.")
    return load_dataset("parquet", data_dir=str(folder), split=noted["split"], cache_dir=cache_dir)


def build_index(
    folder: str | os.PathLike[str], column: str | None = None, factory: str = COSINE, cache_dir: str | None = None
) -> Path:
    """Index a column of a feature table by `Dataset.add_faiss_index`, and keep it in the folder's `index/`.

    Args:
        folder (`str` or path): The table's.
        column (`str`, *optional*): A column of vectors; needed where there are several.
        factory (`str`, defaults to `"L2norm,Flat"`): Which index, in the words of `faiss.index_factory`; by default
            the exact one of cosine similarity. Of millions of rows, one of cells is faster: `"L2norm,IVF1024,Flat"`.
        cache_dir (`str`, *optional*): As of [`open_table`].

    Returns:
        `Path`: the index's file.

    Raises:
        ValueError: where FAISS is not installed, or the column or the kind of index does not exist.

    Example:
    ```python
    >>> import faiss, tempfile
    >>> from ldae.data import DataConfig, open_images
    >>> from ldae import LDAEConfig, LDAEModel
    >>> from ldae.extraction.index import build_index, open_table
    >>> from ldae.extraction.reader import FeatureReader
    >>> from ldae.extraction.table import extract_table
    >>> model = LDAEModel(LDAEConfig.from_size("nano", image_size=16, patch_size=4, latent_dim=8))
    >>> folder = tempfile.mkdtemp()
    >>> reader = FeatureReader(model, torch.zeros(1, 3, 16, 16))
    >>> source = open_images(DataConfig("digits"), "test")
    >>> _ = extract_table(reader, source, folder)
    >>> path = build_index(folder, cache_dir=folder + "/.cache")
    >>> table = open_table(folder, cache_dir=folder + "/.cache")
    >>> table.load_faiss_index("features", str(path))  # what any user of datasets writes
    >>> scores, rows = table.search("features", np.array(table[7]["features"], dtype=np.float32), k=2)
    >>> int(rows[0]), round(float(scores[0]), 3)
    (7, 1.0)

    ```
    """
    faiss = import_faiss()
    table = open_table(folder, cache_dir)
    column = indexed_column(folder, column)
    width = table.features[column].length
    try:
        trained = faiss.index_factory(width, factory, faiss.METRIC_INNER_PRODUCT).is_trained
    except RuntimeError as error:
        raise ValueError(
            f"index_factory={factory!r} is no index of FAISS; give one such as {COSINE!r} or 'L2norm,IVF1024,Flat'."
        ) from error
    table.add_faiss_index(
        column,
        string_factory=factory,
        metric_type=faiss.METRIC_INNER_PRODUCT,
        train_size=None if trained else min(len(table), MOST_TRAINED),
    )
    path = Path(folder) / INDEX_FOLDER / f"{column}.faiss"
    path.parent.mkdir(exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    table.save_faiss_index(column, str(partial))
    os.replace(partial, path)
    return path


def nearest_rows(
    folder: str | os.PathLike[str],
    vector: torch.Tensor,
    k: int = 5,
    column: str | None = None,
    cache_dir: str | None = None,
) -> list[dict[str, Any]]:
    """The rows of an indexed table nearest to a vector.

    Args:
        folder (`str` or path): A table's, with an index of [`build_index`].
        vector (`torch.Tensor` of shape `(F,)`): Features of the same kind.
        k (`int`, defaults to 5): How many; fewer where the table has no more.
        column, cache_dir: As of [`build_index`].

    Returns:
        `list[dict]`: nearest first, each row's `score` (of the default index the cosine) and metadata, classes by
        their names, without features.

    Raises:
        ValueError: where there is no such index, FAISS is not installed, or `k` is less than 1.
    """
    import_faiss()
    if k < 1:
        raise ValueError(f"k={k} is not possible; give 1 or more.")
    column = indexed_column(folder, column)
    path = Path(folder) / INDEX_FOLDER / f"{column}.faiss"
    if not path.is_file():
        raise ValueError(f"{str(folder)!r} has no index of {column}; make it with extract_features --index.")
    table = open_table(folder, cache_dir)
    table.load_faiss_index(column, str(path))
    scores, rows = table.search(column, vector.float().cpu().numpy().astype(np.float32), k=k)
    kinds = {name: kind for name, kind in table.features.items() if not name.startswith(FEATURES)}
    metadata = table.select_columns(list(kinds))
    found = [{"score": float(s), **metadata[int(row)]} for s, row in zip(scores, rows, strict=True) if row >= 0]
    return [{name: _named(value, kinds.get(name)) for name, value in row.items()} for row in found]


def indexed_column(folder: str | os.PathLike[str], column: str | None) -> str:
    """A column of vectors by its name, or the only one.

    Raises:
        ValueError: where there is no such column, or no name and several.
    """
    noted = read_identity(folder)
    if noted["pool"] != "mean":
        raise ValueError(f"{str(folder)!r} holds features of all places (pool='none'), an index needs pool='mean'.")
    names = [name for name in noted["columns"] if name.startswith(FEATURES)]
    if column is None and len(names) == 1:
        return names[0]
    if column is None or column not in names:
        raise ValueError(f"column={column!r} is not possible; give one of {', '.join(names)}.")
    return column


def undecoded_images(source: ImageSource, rows: Sequence[dict[str, Any]]) -> list[Any]:
    """The records of a table's rows, found again in the source that the table was made of."""
    if not source.streaming:
        return [source.dataset[[row[ROW]]].column(source.image_column).to_pylist()[0] for row in rows]
    parts = [source.dataset.shard(source.dataset.num_shards, row[SHARD]).skip(row[ROW]) for row in rows]
    return [next(iter(part))[source.image_column] for part in parts]


def _named(value: Any, kind: Any) -> Any:
    if not isinstance(kind, ClassLabel) or value is None:
        return value
    return kind.int2str(value) if value >= 0 else None


def import_faiss() -> Any:
    """The package of FAISS.

    Raises:
        ValueError: where it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise ValueError("an index needs FAISS; install it with: pip install 'ldae[search]'") from error
    return faiss
