"""FAISS indexes of feature tables, built, stored and searched by `datasets`."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, load_dataset

from ldae.data import ImageSource
from ldae.errors import one_line
from ldae.places import is_address, refuse_pattern

from .folder import MAKE_AGAIN, read_complete, read_identity
from .rows import FEATURES, ROW, SHARD


INDEX_FOLDER = "index"
COSINE = "L2norm,Flat"  # FAISS's name for an exact index of vectors scaled to length 1, whose products are cosines
MOST_TRAINED = 2**18  # vectors that an index with cells learns them from


def open_table(folder: str | os.PathLike[str], cache_dir: str | None = None) -> Dataset:
    """Open a feature table, memory-mapped, as `datasets.load_dataset(folder, split=...)` does.

    Args:
        folder (`str` or path): A folder of [`~ldae.extraction.table.extract_table`].
        cache_dir (`str`, *optional*): Folder in which `datasets` keeps its copy of the table.

    Raises:
        ValueError: If the folder holds no table, or an incomplete or damaged one, or is behind an address.
    """
    if is_address(str(folder)):
        raise ValueError(f"folder={str(folder)!r}: an index needs the table on this machine; copy it here first.")
    noted = read_complete(folder)
    refuse_pattern(folder, "folder")
    try:
        return load_dataset("parquet", data_dir=str(folder), split=noted["split"], cache_dir=cache_dir)
    except Exception as error:  # damaged bytes make datasets and pyarrow raise almost anything
        raise ValueError(
            f"{str(folder)!r} cannot be read ({one_line(error.__cause__ or error)}); {MAKE_AGAIN}"
        ) from error


def build_index(
    folder: str | os.PathLike[str], column: str | None = None, factory: str = COSINE, cache_dir: str | None = None
) -> Path:
    """Index a column of a feature table, and store the index in the folder's `index/`.

    Args:
        folder (`str` or path): The table's folder.
        column (`str`, *optional*): A column of vectors; required if there are several.
        factory (`str`, defaults to `"L2norm,Flat"`): Kind of index for `faiss.index_factory`; by default the exact one
            of cosine similarity. For millions of rows, an index with cells is faster: `"L2norm,IVF1024,Flat"`.
        cache_dir (`str`, *optional*): See [`open_table`].

    Returns:
        `Path`: The index's file.

    Raises:
        ValueError: If FAISS is not installed, the column or the kind of index does not exist, or the rows are too few
            for it.

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
    table = open_table(folder, cache_dir)
    column = indexed_column(folder, column)
    trained = empty_index(table.features[column].length, factory).is_trained
    for batch in table.with_format("numpy", columns=[column]).iter(8192):
        if not np.isfinite(batch[column]).all():  # an index of these would give any answer
            raise ValueError(f"{str(folder)!r} has {column} that are not finite numbers; make the table anew.")
    try:
        table.add_faiss_index(
            column,
            string_factory=factory,
            metric_type=import_faiss().METRIC_INNER_PRODUCT,
            train_size=None if trained else min(len(table), MOST_TRAINED),
        )
    except RuntimeError as error:  # of FAISS, whose cells and codes are learnt from the vectors
        raise ValueError(
            f"index_factory={factory!r} cannot be made of {len(table):,} rows ({_reason(error)}); give one with fewer "
            f"cells, or {COSINE!r}."
        ) from error
    path = Path(folder) / INDEX_FOLDER / f"{column}.faiss"
    path.parent.mkdir(exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    table.save_faiss_index(column, str(partial))
    os.replace(partial, path)
    return path


def empty_index(width: int, factory: str) -> Any:
    """Make an index of vectors `(width,)` without any in it.

    Raises:
        ValueError: If FAISS is not installed, or the kind of index does not exist for this width.
    """
    faiss = import_faiss()
    try:
        return faiss.index_factory(width, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise ValueError(
            f"index_factory={factory!r} is not an index of FAISS for vectors of {width}; give one such as {COSINE!r} "
            "or 'L2norm,IVF1024,Flat'."
        ) from error


def nearest_rows(
    folder: str | os.PathLike[str],
    vector: torch.Tensor,
    k: int = 5,
    column: str | None = None,
    cache_dir: str | None = None,
) -> list[dict[str, Any]]:
    """Find the rows of an indexed table that are nearest to a vector.

    Args:
        folder (`str` or path): A table's folder, with an index of [`build_index`].
        vector (`torch.Tensor` of shape `(F,)`): Features of the same kind.
        k (`int`, defaults to 5): Number of rows; fewer if the table has fewer.
        column (`str`, *optional*): See [`build_index`].
        cache_dir (`str`, *optional*): See [`open_table`].

    Returns:
        `list[dict]`: Nearest first, each row's `score` (with the default index the cosine) and its metadata, with
        classes by name and without features.

    Raises:
        ValueError: If there is no such index, FAISS is not installed, or `k` is less than 1.
    """
    import_faiss()
    if k < 1:
        raise ValueError(f"k={k} must be at least 1.")
    column = indexed_column(folder, column)
    path = Path(folder) / INDEX_FOLDER / f"{column}.faiss"
    if not path.is_file():
        raise ValueError(f"{str(folder)!r} has no index of {column}; make it with extract_features --index.")
    table = open_table(folder, cache_dir)
    try:
        table.load_faiss_index(column, str(path))
        scores, rows = table.search(column, vector.float().cpu().numpy().astype(np.float32), k=k)
        if not np.isfinite(scores[rows >= 0]).all() or rows.max(initial=0) >= len(table):
            raise ValueError("its numbers make no sense")
    except Exception as error:  # FAISS raises RuntimeError, datasets ValueError
        raise ValueError(
            f"{path} does not fit the table or is damaged ({one_line(error)[:200]}); make it again with "
            "extract_features --index."
        ) from error
    kinds = {name: kind for name, kind in table.features.items() if not name.startswith(FEATURES)}
    metadata = table.select_columns(list(kinds))
    return [
        {"score": float(score), **{name: _named(value, kinds[name]) for name, value in metadata[int(row)].items()}}
        for score, row in zip(scores, rows, strict=True)
        if row >= 0
    ]


def indexed_column(folder: str | os.PathLike[str], column: str | None) -> str:
    """Return a column of vectors by its name, or the only one.

    Raises:
        ValueError: If there is no such column, or no name is given and there are several.
    """
    noted = read_identity(folder)
    if noted["pool"] != "mean":
        raise ValueError(f"{str(folder)!r} holds features of all places (pool='none'); an index needs pool='mean'.")
    names = [name for name in noted["columns"] if name.startswith(FEATURES)]
    if column is None and len(names) == 1:
        return names[0]
    if column is None or column not in names:
        raise ValueError(f"column={column!r} does not exist; choose one of {', '.join(names)}.")
    return column


def undecoded_images(source: ImageSource, rows: Sequence[dict[str, Any]]) -> list[Any]:
    """Look up the undecoded images of a table's rows in the source that the table was made from."""
    if not source.streaming:
        return [source.dataset[[row[ROW]]].column(source.image_column).to_pylist()[0] for row in rows]
    parts = [source.dataset.shard(source.dataset.num_shards, row[SHARD]).skip(row[ROW]) for row in rows]
    return [next(iter(part))[source.image_column] for part in parts]


def import_faiss() -> Any:
    """Import FAISS.

    Raises:
        ValueError: If it is not installed.
    """
    try:
        import faiss
    except ImportError as error:
        raise ValueError("an index needs FAISS; install it with: pip install 'ldae[search]'") from error
    return faiss


def _reason(error: RuntimeError) -> str:
    """Return the end of FAISS's message, which begins with a place in its source."""
    return one_line(str(error).rpartition(": ")[2])[:200].rstrip(".")


def _named(value: Any, kind: Any) -> Any:
    if not isinstance(kind, ClassLabel) or value is None:
        return value
    return kind.int2str(value) if value >= 0 else None
