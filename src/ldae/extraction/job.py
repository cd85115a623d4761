"""The work on one feature table: what it is made from, which shards are missing, and how they are written."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypedDict

from datasets import Features

from ldae import stopping
from ldae.checkpoints import hash_model
from ldae.data import ImageSource
from ldae.data.loader import make_torch_loader
from ldae.data.rows import hash_source, nested_feature
from ldae.files import FolderName, make_folder
from ldae.remote import open_folder
from ldae.shards import shard_ranges

from .folder import DATA_FOLDER, FeatureFolder, FeatureShardWriter, choose_rows_per_shard, read_identity
from .reader import FeatureReader
from .rows import CroppedPixels, Piece, Pixels, RowReader, Shard, StoredPieces, StreamedPieces, model_input


DTYPES = ("float32", "float16")
Finished = dict[Shard, dict[str, Any]]  # what each written shard says of itself


class TableOptions(TypedDict, total=False):
    """The arguments of [`TableJob`] that have a default."""

    pixels: Pixels | None
    settings: dict[str, Any] | None
    notes: dict[str, Any] | None
    root: str | None
    dtype: str
    rows_per_shard: int | None
    batch_size: int
    num_workers: int


class TableJob:
    """The work on one feature table.

    Whoever writes shards (the processes of a launch, the actors of a Ray cluster) makes the same job, which claims the
    table's folder or checks that it holds this table.

    Args:
        reader, source, folder: See [`~ldae.extraction.table.extract_table`].
        pixels (`Pixels`, *optional*): Makes pixels from records; by default a centre crop of the model's size.
        settings (`dict`, *optional*): Further JSON settings for `extraction.json`. A later job with other settings,
            or with another model, other images or columns, is refused.
        notes (`dict`, *optional*): Further entries of it, such as paths, in which a later job may differ; the first
            job's are kept.
        root (`str`, *optional*): Folder that the names of image files are relative to.
        dtype (`str`, defaults to `"float32"`): Type of the stored features; `"float16"` takes half the space.
        rows_per_shard (`int`, *optional*): By default a 64th of the rows, from 256 to 8,192, and at most 256 MiB of
            features. A kill costs each process at most one shard. A folder that was begun keeps its own.
        batch_size (`int`, defaults to 256): Images of a forward pass.
        num_workers (`int`, defaults to 0): Worker processes that decode, in each process; at most one for each file of
            a stream.

    Raises:
        ValueError: If the folder holds something else, or features with other settings.
    """

    def __init__(
        self,
        reader: FeatureReader,
        source: ImageSource,
        folder: FolderName,
        *,
        pixels: Pixels | None = None,
        settings: dict[str, Any] | None = None,
        notes: dict[str, Any] | None = None,
        root: str | None = None,
        dtype: str = "float32",
        rows_per_shard: int | None = None,
        batch_size: int = 256,
        num_workers: int = 0,
    ) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"dtype={dtype!r} does not exist; choose one of {', '.join(DTYPES)}.")
        for name, value in {"batch_size": batch_size, "rows_per_shard": rows_per_shard}.items():
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1.")
        self.reader, self.source, self.dtype = reader, source, dtype
        self.batch_size, self.num_workers = batch_size, num_workers
        encoder = reader.encoder
        pixels = pixels or CroppedPixels(encoder.num_channels, encoder.image_size, source.reduced_decoding)
        self.rows = RowReader(source, pixels, named=_has_names(source), root=root)
        values = {name: nested_feature(shape, dtype) for name, shape in reader.columns.items()}
        self.features = Features({**self.rows.features, **values})
        # load_dataset finds the files by the split's name, if it is a plain one.
        split = source.split if re.fullmatch(r"[A-Za-z_]\w*", source.split) else "train"
        self.place = FeatureFolder(open_folder(folder, "output_dir"), split, source.streaming)
        chosen = rows_per_shard or (self.place.shards.identity() or {}).get("rows_per_shard")
        self.rows_per_shard: int = chosen or choose_rows_per_shard(reader.columns, dtype, source.num_examples)
        self.columns = {name: str(kind) for name, kind in self.features.items()}
        identity = {
            **(settings or {}),
            "model": hash_model(encoder.module),
            "pixels": str(pixels),
            "images": None if source.streaming else hash_source(source),
            "streaming": source.streaming,
            "num_examples": source.num_examples,
            "num_parts": source.dataset.num_shards if source.streaming else 1,
            "split": self.place.split,
            "columns": self.columns,
            "layers": None if reader.layers is None else list(reader.layers),
            "timesteps": None if reader.timesteps is None else list(reader.timesteps),
            **({"joined": True} if reader.joined else {}),
            "noisy": reader.noisy,
            "seed": reader.seed,
            "pool": reader.pool,
            "compute_dtype": "float32" if reader.dtype is None else str(reader.dtype).removeprefix("torch."),
            "rows_per_shard": self.rows_per_shard,
        }
        self.place.shards.claim(identity, {"source": source.description, **(notes or {})})
        make_folder(self.place.path / DATA_FOLDER)

    def finished(self, number: int | None = None) -> Finished:
        """Find the shards that are written: all, or of one of the numbers of [`~TableJob.missing`]."""
        return self.place.finished(self.columns, number)

    def missing(self, finished: Finished) -> list[int]:
        """Find the shards to write by their numbers, or the unfinished parts of a stream."""
        if not self.source.streaming:
            count = len(shard_ranges(len(self.source.dataset), self.rows_per_shard))
            return [number for number in range(count) if (0, number) not in finished]
        ends = {part: number for (part, number), said in finished.items() if said["ends_part"]}
        complete = {part for part, last in ends.items() if all((part, i) in finished for i in range(last))}
        return [part for part in range(self.source.dataset.num_shards) if part not in complete]

    def write(
        self,
        numbers: Sequence[int],
        finished: Finished,
        share: tuple[int, int] = (0, 1),
        on_images: Callable[[int], object] | None = None,
    ) -> int:
        """Compute and write shards.

        Args:
            numbers (`Sequence[int]`): Some of [`~TableJob.missing`].
            finished (`dict`): Shards of these parts that are written already.
            share (`tuple[int, int]`, defaults to `(0, 1)`): `(i, n)` for only every n-th shard of each part of a
                stream, from shard i on.
            on_images (`Callable[[int], object]`, *optional*): Called with the number of rows of each finished batch.

        Returns:
            `int`: Number of images whose features were computed.
        """
        images = 0
        writers: dict[Shard, FeatureShardWriter] = {}  # a shard is open until its last piece arrives
        device = self.reader.encoder.device
        try:
            for piece in self._pieces(numbers, finished, share):
                stopping.check()
                if piece.shard not in writers:
                    path = self.place.shard_path(piece.shard)
                    writers[piece.shard] = FeatureShardWriter(path, self.features, self.reader.columns, self.dtype)
                values = {}
                if piece.images is not None:
                    batch = model_input(piece.images.to(device, non_blocking=True))  # (b, C, S, S)
                    values = self.reader(batch, piece.positions.to(device))
                    images += len(batch)
                writers[piece.shard].add(piece, values)
                if piece.ends_shard:
                    writers[piece.shard].finish_shard(piece.ends_part)
                    del writers[piece.shard]
                if on_images is not None:
                    on_images(piece.num_rows)
        finally:
            for writer in writers.values():
                writer.discard()
        return images

    def conclude(self, before: Finished) -> None:
        """Check that all shards are written, and note their totals, unless all were finished `before`.

        Raises:
            ValueError: If a shard is missing, or no image could be read.
        """
        now, path = self.finished(), self.place.path
        if missing := self.missing(now):
            raise ValueError(
                f"shards {missing[:5]} of {self.source.description} are missing in {path} after all processes have "
                "ended. Check that all of them see this folder, and repeat the command."
            )
        if not any(said["kept"] for said in now.values()):
            raise ValueError(f"{self.source.description}: none of its images can be read.")
        if now.keys() != before.keys() or "rows" not in read_identity(path):
            self.place.finish(list(now.values()))

    def _pieces(self, numbers: Sequence[int], finished: Finished, share: tuple[int, int]) -> Iterable[Piece]:
        if self.source.streaming:
            stream = StreamedPieces(self.rows, self.rows_per_shard, self.batch_size, finished, numbers, share)
            return make_torch_loader(stream, min(self.num_workers, len(numbers)))  # type: ignore[arg-type]
        shards = shard_ranges(len(self.source.dataset), self.rows_per_shard)
        tasks = [
            (number, shards[number][i : i + self.batch_size], i + self.batch_size >= len(shards[number]))
            for number in numbers
            for i in range(0, len(shards[number]), self.batch_size)
        ]
        return make_torch_loader(StoredPieces(self.rows), self.num_workers, tasks)  # type: ignore[arg-type]


def _has_names(source: ImageSource) -> bool:
    """Tell whether the first image comes with the name of its file."""
    if source.streaming:
        first: Any = next(iter(source.dataset), {})
        record = first.get(source.image_column)
    else:
        record = source.dataset[:1].column(source.image_column).to_pylist()[0]
    return isinstance(record, dict) and record.get("path") is not None
