"""Features of a whole data set as a table: over several processes, resumed after a kill, in constant memory."""

import os
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from ldae import stopping
from ldae.data import ImageSource
from ldae.data.loader import make_torch_loader
from ldae.data.rows import hash_source
from ldae.files import AnyPath, hash_tensors, make_folder, shard_ranges
from ldae.processes import join_processes
from ldae.remote import open_folder

from .folder import (
    DATA_FOLDER,
    FeatureFolder,
    FeatureShardWriter,
    choose_rows_per_shard,
    read_identity,
    table_features,
)
from .reader import FeatureReader
from .rows import CroppedPixels, Piece, Pixels, RowReader, Shard, StoredPieces, StreamedPieces, model_input


DTYPES = ("float32", "float16")


@dataclass(frozen=True)
class Extraction:
    """Outcome of [`extract_table`].

    Attributes:
        folder (`Path` or `UPath`): The table's folder.
        noted (`dict`): Content of `extraction.json`: settings, `rows`, `skipped` (row, name and reason of each
            unreadable image), `counts` of conversions.
        images (`int`): Number of images whose features this process computed; 0 if the table was complete.
        seconds (`float`): Time taken.
    """

    folder: AnyPath
    noted: dict[str, Any]
    images: int
    seconds: float


def extract_table(
    reader: FeatureReader,
    source: ImageSource,
    folder: str | os.PathLike[str],
    *,
    pixels: Pixels | None = None,
    settings: dict[str, Any] | None = None,
    notes: dict[str, Any] | None = None,
    root: str | None = None,
    dtype: str = "float32",
    batch_size: int = 256,
    rows_per_shard: int | None = None,
    num_workers: int = 0,
    on_images: Callable[[int], object] | None = None,
) -> Extraction:
    """Write features and metadata of every readable image of a source as a table of parquet files.

    Every process of a launch calls it, with a folder that all of them see, and writes its share of the shards. The
    same call again computes only what is missing, with any number of processes, batch size and workers; a complete
    table is not changed.

    Args:
        reader ([`~ldae.extraction.reader.FeatureReader`]): Reads the features; its model is on the device to use.
        source ([`~ldae.data.ImageSource`]): The images, streamed or not; the table keeps its `other_columns`.
        folder (`str` or path): The table's folder, here or at an address such as `s3://bucket/features`; it is created
            if it does not exist.
        pixels (`Pixels`, *optional*): Makes pixels from records; by default a centre crop of the model's size.
        settings (`dict`, *optional*): Further JSON settings for `extraction.json`. A later call with other settings,
            or with another model, other images or columns, is refused.
        notes (`dict`, *optional*): Further entries of it that a later call may change, such as paths.
        root (`str`, *optional*): Folder that the names of image files are relative to.
        dtype (`str`, defaults to `"float32"`): Type of the stored features; `"float16"` takes half the space.
        batch_size (`int`, defaults to 256): Images of a forward pass.
        rows_per_shard (`int`, *optional*): By default a 64th of the rows, from 256 to 8,192, and at most 256 MiB of
            features. A kill costs each process at most one shard. A folder that was begun keeps its own.
        num_workers (`int`, defaults to 0): Worker processes that decode, in each process; at most one for each file of
            a stream.
        on_images (`Callable[[int], object]`, *optional*): Called with the number of rows of each finished batch.

    Returns:
        [`Extraction`]. `datasets.load_dataset(folder)` opens the table. Its columns are `row` (in a stream counted
        within its part, `shard`), `file_name` if images have names, labels and other columns, and the reader's.

    Raises:
        ValueError: If the folder holds something else, or features with other settings, or no image can be read.

    Example:
    ```python
    >>> import tempfile
    >>> import torch
    >>> from datasets import load_dataset
    >>> from ldae import LDAEConfig, LDAEModel
    >>> from ldae.data import DataConfig, open_images
    >>> from ldae.extraction.reader import FeatureReader
    >>> from ldae.extraction.table import extract_table
    >>> model = LDAEModel(LDAEConfig.from_size("nano", image_size=16, patch_size=4, latent_dim=8))
    >>> reader = FeatureReader(model, torch.zeros(1, 3, 16, 16))
    >>> folder = tempfile.mkdtemp()
    >>> extract_table(reader, open_images(DataConfig("digits"), "test"), folder).images
    360
    >>> load_dataset("parquet", data_dir=folder, cache_dir=folder + "/.cache")["test"].column_names
    ['row', 'label', 'features']

    ```
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} does not exist; choose one of {', '.join(DTYPES)}.")
    for name, value in {"batch_size": batch_size, "rows_per_shard": rows_per_shard}.items():
        if value is not None and value < 1:
            raise ValueError(f"{name}={value} must be at least 1.")
    pixels = pixels or CroppedPixels(reader.encoder.num_channels, reader.encoder.image_size, source.reduced_decoding)
    state = join_processes()
    rows = RowReader(source, pixels, named=_first_name(source) is not None, root=root)
    features = table_features(rows.features, reader.columns, dtype)
    place = FeatureFolder(open_folder(folder, "output_dir"), _split_name(source), source.streaming)
    with state.main_process_first():
        chosen = rows_per_shard or (place.shards.identity() or {}).get("rows_per_shard")
        chosen = chosen or choose_rows_per_shard(reader.columns, dtype, source.num_examples)
        identity = {
            **(settings or {}),
            "model": hash_model(reader.encoder.module),
            "pixels": str(pixels),
            "images": None if source.streaming else hash_source(source),
            "streaming": source.streaming,
            "num_examples": source.num_examples,
            "num_parts": source.dataset.num_shards if source.streaming else 1,
            "split": place.split,
            "columns": {name: str(kind) for name, kind in features.items()},
            "layers": None if reader.layers is None else list(reader.layers),
            "timesteps": None if reader.timesteps is None else list(reader.timesteps),
            "noisy": reader.noisy,
            "seed": reader.seed,
            "pool": reader.pool,
            "compute_dtype": "float32" if reader.dtype is None else str(reader.dtype).removeprefix("torch."),
            "rows_per_shard": chosen,
        }
        place.shards.claim(identity, {"source": source.description, **(notes or {})})
        make_folder(place.path / DATA_FOLDER)
    finished = broadcast_object_list([place.finished(identity["columns"])])[
        0
    ]  # as the main process sees it, so that all divide the same rest
    begun_at = time.perf_counter()
    pieces = _pieces(rows, finished, chosen, batch_size, num_workers, state)
    device = reader.encoder.device
    images = _write(pieces, reader, place, features, device, on_images)
    seconds = time.perf_counter() - begun_at
    state.wait_for_everyone()
    if state.is_main_process:
        noted = _conclude(place, finished, chosen, source)
    state.wait_for_everyone()
    return Extraction(place.path, noted if state.is_main_process else read_identity(place.path), images, seconds)


def hash_model(model: torch.nn.Module) -> str:
    """Hash everything that a model's features depend on: its configuration and its weights."""
    config: Any = model.config
    fields = {name: value for name, value in config.to_dict().items() if not name.startswith(("_", "transformers"))}
    return hash_tensors(fields, model.state_dict())


def _split_name(source: ImageSource) -> str:
    """Return the split that `load_dataset` finds the files by: the source's if it is a plain name."""
    return source.split if re.fullmatch(r"[A-Za-z_]\w*", source.split) else "train"


def _first_name(source: ImageSource) -> str | None:
    if source.streaming:
        first: Any = next(iter(source.dataset), {})
        record = first.get(source.image_column)
    else:
        record = source.dataset[:1].column(source.image_column).to_pylist()[0]
    return record.get("path") if isinstance(record, dict) else None


def _pieces(
    rows: RowReader,
    finished: dict[Shard, dict[str, Any]],
    rows_per_shard: int,
    batch_size: int,
    num_workers: int,
    state: PartialState,
) -> Iterable[Piece]:
    """Read this process's rows that are not in the table yet."""
    rank, world_size = state.process_index, state.num_processes
    if rows.source.streaming:
        parts = complete_parts(finished)
        stream = StreamedPieces(rows, rows_per_shard, batch_size, finished, parts, rank, world_size)
        return make_torch_loader(stream, min(num_workers, len(stream.parts)))  # type: ignore[arg-type]
    shards = shard_ranges(len(rows.source.dataset), rows_per_shard)
    missing = [number for number in range(len(shards)) if (0, number) not in finished]
    tasks = [
        (number, shards[number][i : i + batch_size], i + batch_size >= len(shards[number]))
        for number in missing[rank::world_size]
        for i in range(0, len(shards[number]), batch_size)
    ]
    return make_torch_loader(StoredPieces(rows), num_workers, tasks)  # type: ignore[arg-type]


def complete_parts(finished: dict[Shard, dict[str, Any]]) -> set[int]:
    """Find the parts of a stream whose shards are all written, up to the one that ends the part."""
    ends = {part: number for (part, number), said in finished.items() if said["ends_part"]}
    return {part for part, last in ends.items() if all((part, number) in finished for number in range(last))}


def _write(
    pieces: Iterable[Piece],
    reader: FeatureReader,
    place: FeatureFolder,
    features: Any,
    device: torch.device,
    on_images: Callable[[int], object] | None,
) -> int:
    """Compute and write features, and return the number of images; a shard is open until its last piece arrives."""
    images = 0
    writers: dict[Shard, FeatureShardWriter] = {}
    try:
        for piece in pieces:
            stopping.check()
            if piece.shard not in writers:
                writers[piece.shard] = FeatureShardWriter(place.shard_path(piece.shard), features, reader.columns)
            values = {}
            if piece.images is not None:
                batch = model_input(piece.images.to(device, non_blocking=True))  # (b, C, S, S)
                values = reader(batch, piece.positions.to(device))
                images += len(batch)
            writers[piece.shard].add(piece, values)
            if piece.ends_shard:
                writers.pop(piece.shard).finish_shard(piece.ends_part)
            if on_images is not None:
                on_images(piece.num_rows)
    finally:
        for writer in writers.values():
            writer.discard()
    return images


def _conclude(
    place: FeatureFolder, finished: dict[Shard, dict[str, Any]], rows_per_shard: int, source: ImageSource
) -> dict[str, Any]:
    now = place.finished(read_identity(place.path)["columns"])
    if source.streaming:
        missing = sorted(set(range(source.dataset.num_shards)) - complete_parts(now))
    else:
        expected = len(shard_ranges(len(source.dataset), rows_per_shard))
        missing = [number for number in range(expected) if (0, number) not in now]
    if missing:
        raise ValueError(
            f"shards {missing[:5]} of {source.description} are missing in {place.path} after all processes have "
            "ended. Check that all of them see this folder, and repeat the command."
        )
    if not any(said["kept"] for said in now.values()):
        raise ValueError(f"{source.description}: none of its images can be read.")
    noted = read_identity(place.path)
    return noted if now.keys() == finished.keys() and "rows" in noted else place.finish(list(now.values()))
