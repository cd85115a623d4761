"""Latents of a convolutional VAE on disk: a run then encodes each image once, not once an epoch.

A cache is a folder that `datasets.load_from_disk` opens: shards of rows in the source's order, and `latents.json`, which
says what they are the latents of. A shard appears whole or not at all, whoever writes it, so that a killed start goes on
where it stopped, with any number of processes.
"""

import hashlib
import json
import os
import tempfile
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.utils.data
from datasets import Dataset, DatasetInfo, Features, List, Value

from ..files import write_whole
from ..models.tokenizer_conv_ldae import ConvVAETokenizer
from .augment import prepare_images
from .batch import Batch, Decoder, WorkerBatch
from .loader import make_torch_loader
from .one_pass import decode_rows
from .order import read_rows
from .sources import ImageSource


IDENTITY_FILE = "latents.json"
SAMPLED_ROWS = 64  # rows that tell one data set from another; reading all would take as long as encoding them
SHARDS, LEAST_ROWS, MOST_ROWS = 64, 256, 8192  # enough shards for many processes, rows enough for whole batches


def cache_latents(
    tokenizer: ConvVAETokenizer,
    source: ImageSource,
    folder: str | os.PathLike[str],
    *,
    image_size: int,
    num_channels: int = 3,
    decode_size: int | None = None,
    horizontal_flip: bool = False,
    dtype: str = "float16",
    batch_size: int = 64,
    rows_per_shard: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
    device: torch.device | str = "cpu",
    on_rows: Callable[[int], object] | None = None,
) -> Counter[str]:
    """
    Encode the centre crop of every image of a source, and of its mirror image, and keep the latents in a folder.

    Shards that are there already stay; what is missing is written, each process its share. On several processes, wait for
    all before [`open_latents`]; the folder must be one that all of them see.

    Args:
        tokenizer ([`ConvVAETokenizer`]): Fitted; it is moved to `device`, and its latents are scaled as the model sees them.
        source ([`ImageSource`]): The images; not streamed.
        folder (`str` or path): Made where it is missing.
        image_size (`int`, in pixels), num_channels, decode_size: As of the loader that would read the images.
        horizontal_flip (`bool`, defaults to `False`): Also encode the mirror images.
        dtype (`str`, defaults to `"float16"`): `"float16"` or `"float32"`. Rounding latents of unit variance to float16 is an
            error of 2e-4 (root mean square), below a fiftieth of the first noise level of `linear_beta` (0.01) and of
            `linear_gamma2` (0.03).
        batch_size (`int`, defaults to 64): Images encoded at a time.
        rows_per_shard (`int`, *optional*): By default a 64th of the rows, 256 to 8,192. A kill loses one shard's work.
        rank, world_size (`int`): This process and the number of processes.
        num_workers (`int`, defaults to 0): Worker processes that decode images.
        device (`torch.device` or `str`, defaults to `"cpu"`): Where to encode.
        on_rows (`Callable[[int], object]`, *optional*): Told how many rows were done, now and then.

    Returns:
        `Counter`: What was converted and skipped in this process, as of [`ImageLoader`]. A row that cannot be read is kept
        without latents.

    Raises:
        ValueError: where the source is streamed, the tokenizer is not fitted, the folder holds something else, or the cache
            in it was made of other images, by another tokenizer or in another way; the message says what differs.

    Example:

    ```python
    >>> import tempfile
    >>> from ldae import LDAEConfig
    >>> from ldae.data import DataConfig, cache_latents, open_images, open_latents
    >>> from ldae.models.tokenizer_conv_ldae import build_tokenizer
    >>> small = {"block_out_channels": [8, 8], "layers_per_block": 1, "latent_channels": 2, "norm_num_groups": 4}
    >>> space = dict(input_space="latent", prediction_target="latent", latent_dim=8)
    >>> config = LDAEConfig(
    ...     image_size=16, patch_size=4, latent_tokenizer="conv_vae", conv_vae_config=small, **space
    ... )
    >>> tokenizer = build_tokenizer(config)
    >>> tokenizer.fitted.fill_(True)
    tensor(True)
    >>> source, folder = open_images(DataConfig("digits"), "test"), tempfile.mkdtemp()
    >>> cache_latents(tokenizer, source, folder, image_size=16, horizontal_flip=True)
    Counter()
    >>> open_latents(folder, source).dataset.with_format("torch")[0]["latents"].shape  # mirrored or not, patches, d
    torch.Size([2, 16, 8])

    ```
    """
    if source.streaming:
        raise ValueError(f"{source.description} is streamed; latents are read in any order: use data.streaming=false")
    if not bool(tokenizer.fitted):
        raise ValueError("tokenizer.fitted=False: the tokenizer was never fitted, its latents have no scale yet")
    count = len(source.dataset)
    rows_per_shard = rows_per_shard or min(max(-(-count // SHARDS), LEAST_ROWS), MOST_ROWS)
    views, grid = 1 + horizontal_flip, image_size // tokenizer.patch_size
    shape = (views, grid**2, tokenizer.latent_dim)  # (V, N, d)
    decoder = Decoder(num_channels, decode_size or image_size)
    _claim(
        Path(folder),
        {
            "tokenizer": _hash_tokenizer(tokenizer),
            "images": hash_source(source),
            "rows": count,
            "rows_per_shard": rows_per_shard,
            "has_labels": source.label_column is not None,
            "image_size": image_size,
            "decode_size": decoder.size,
            "num_channels": num_channels,
            "shape": list(shape),
            "dtype": dtype,
        },
        source.description,
    )
    shards = _shards(Path(folder), count, rows_per_shard)
    missing = [(path, rows) for path, rows in shards[rank::world_size] if not path.is_file()]
    tokenizer.to(device).eval()

    @torch.no_grad()
    def encode(batch: Batch) -> np.ndarray:
        pixels = prepare_images(batch.images.to(device), batch.positions, 0, image_size=image_size)  # (b, C, S, S)
        with torch.autocast(pixels.device.type, enabled=False):
            z = [tokenizer.encode_images(view) for view in (pixels, pixels.flip(-1))[:views]]
        return torch.stack(z, dim=1).to(getattr(torch, dtype)).cpu().numpy()  # (b, V, N, d)

    chunks = [list(rows[i : i + batch_size]) for _, rows in missing for i in range(0, len(rows), batch_size)]
    batches = zip(chunks, make_torch_loader(_StoredRows(source, decoder), num_workers, chunks), strict=True)
    features, counts = _features(shape, dtype, source.label_column is not None), Counter[str]()
    for path, rows in missing:
        _write_shard(path, features, _encoded(batches, len(rows), encode, shape, dtype, counts, on_rows))
    if all(path.is_file() for path, _ in shards):  # so the last process to come here does it, or several the same
        _conclude(Path(folder), features, [path for path, _ in shards])
    return counts


def open_latents(folder: str | os.PathLike[str], source: ImageSource) -> ImageSource:
    """
    The cache of a source, to be read by [`ImageLoader`] in the same order as the source itself.

    Args:
        folder (`str` or path): What [`cache_latents`] has filled, on all processes, for the same arguments: it checks them.
        source ([`ImageSource`]): What the latents were made of.

    Returns:
        [`ImageSource`] with a `latent_cache`, memory-mapped: its columns are `row`, `label` (where there are labels) and
        `latents` `(V, N, d)`, of the image and with V = 2 of its mirror image too.

    Raises:
        ValueError: where the cache is not complete.
    """
    if not (Path(folder) / "state.json").is_file():
        raise ValueError(
            f"latent_cache={str(folder)!r} is not complete: some shards of {source.description} are missing"
        )
    dataset = Dataset.load_from_disk(str(folder), keep_in_memory=False)
    return replace(
        source,
        dataset=dataset.with_format("arrow"),
        image_column="latents",
        label_column=None if source.label_column is None else "label",
        latent_cache=str(folder),
    )


class _StoredRows(torch.utils.data.Dataset[WorkerBatch]):
    """Lists of rows, decoded."""

    def __init__(self, source: ImageSource, decoder: Decoder) -> None:
        self.source, self.decoder = source, decoder

    def __getitem__(self, rows: list[int]) -> WorkerBatch:
        return decode_rows(self.source, self.decoder, rows, *read_rows(self.source, rows))


def _claim(folder: Path, identity: dict[str, Any], description: str) -> None:
    """Note what the cache is of, or see that it is the same as noted."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [entry.name for entry in folder.iterdir() if not entry.name.startswith(".")]
    if IDENTITY_FILE not in names:
        if names:
            raise ValueError(
                f"latent_cache={str(folder)!r} holds other files ({', '.join(sorted(names)[:3])}): give an empty folder"
            )
        write_whole(folder / IDENTITY_FILE, json.dumps({"source": description, **identity}, indent=2) + "\n")
        return
    noted = json.loads((folder / IDENTITY_FILE).read_text())
    changed = [
        f"{name} was {noted.get(name)} and is {now}" for name, now in identity.items() if noted.get(name) != now
    ]
    if changed:
        raise ValueError(
            f"latent_cache={str(folder)!r} holds other latents ({'; '.join(changed)}): give another folder, or delete it"
        )


def _hash_tokenizer(tokenizer: ConvVAETokenizer) -> str:
    """Of everything that a latent depends on: weights, scale, and what of the network is no weight."""
    settings = (tokenizer.patch_size, tokenizer.num_channels, tokenizer.latent_scaling, tokenizer.conv_vae_config)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in sorted(tokenizer.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def hash_source(source: ImageSource) -> str:
    """Of the undecoded images and labels of rows all over the source, whatever its files are called."""
    count = len(source.dataset)
    rows = np.unique(np.linspace(0, count - 1, min(count, SAMPLED_ROWS)).astype(int)).tolist()
    digest = hashlib.sha256()
    for record, label in zip(*read_rows(source, rows), strict=True):
        content = record.get("bytes") if isinstance(record, dict) else record
        if content is None and isinstance(record, dict) and record.get("path") is not None:
            with suppress(OSError):  # counted where the image is decoded
                content = Path(record["path"]).expanduser().read_bytes()
        digest.update(f"{label} {len(content or b'')} ".encode())
        digest.update(content or b"")
    return digest.hexdigest()[:16]


def _shards(folder: Path, count: int, rows_per_shard: int) -> list[tuple[Path, range]]:
    """Files and their rows."""
    begins = range(0, count, rows_per_shard)
    return [
        (folder / f"data-{i:05d}-of-{len(begins):05d}.arrow", range(begin, min(begin + rows_per_shard, count)))
        for i, begin in enumerate(begins)
    ]


def _features(shape: tuple[int, ...], dtype: str, has_labels: bool) -> Features:
    latents: Any = Value(dtype)
    for length in reversed(shape):
        latents = List(latents, length=length)
    labels = {"label": Value("int64")} if has_labels else {}
    return Features({"row": Value("int64"), **labels, "latents": latents})


def _encoded(
    batches: Iterator[tuple[list[int], WorkerBatch]],
    count: int,
    encode: Callable[[Batch], np.ndarray],
    shape: tuple[int, ...],
    dtype: str,
    counts: Counter[str],
    on_rows: Callable[[int], object] | None,
) -> Iterator[dict[str, Any]]:
    """The columns of the next `count` rows, batch after batch; a row that cannot be read has no latents."""
    while count:
        rows, item = next(batches)
        counts.update(item.counts)
        at = item.batch.positions.numpy() - rows[0]  # rows of a chunk follow one another
        latents, missing = np.zeros((len(rows), *shape), dtype), np.ones(len(rows), bool)
        labels = np.full(len(rows), -1)
        if len(at):
            latents[at], missing[at] = encode(item.batch), False
            if item.batch.labels is not None:
                labels[at] = item.batch.labels.numpy()
        yield {"row": rows, "label": labels, "latents": _nested(latents, missing)}
        count -= len(rows)
        if on_rows is not None:
            on_rows(len(rows))


def _nested(values: np.ndarray, missing: np.ndarray) -> pa.FixedSizeListArray:
    """`(b, V, N, d)` as a column of nested lists of fixed length, without a copy."""
    column = pa.array(values.reshape(-1))
    for length in values.shape[:1:-1]:
        column = pa.FixedSizeListArray.from_arrays(column, length)
    return pa.FixedSizeListArray.from_arrays(column, values.shape[1], mask=pa.array(missing))


def _write_shard(path: Path, features: Features, batches: Iterator[dict[str, Any]]) -> None:
    """An Arrow file in the form of `datasets`, written beside under a hidden name and renamed when it is whole."""
    schema = features.arrow_schema
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")  # two runs may write the same shard
    try:
        with partial.open("xb") as file, pa.ipc.new_stream(file, schema) as writer:
            for columns in batches:
                writer.write_batch(pa.record_batch([columns[name] for name in schema.names], schema=schema))
        os.replace(partial, path)
    except FileNotFoundError:
        if not path.is_file():  # else the other run was first, and cleared up
            raise
    finally:
        partial.unlink(missing_ok=True)


def _conclude(folder: Path, features: Features, paths: list[Path]) -> None:
    """What makes a data set of the shards; what killed starts left is removed."""
    with tempfile.TemporaryDirectory() as described:
        DatasetInfo(features=features).write_to_directory(described)
        write_whole(folder / "dataset_info.json", (Path(described) / "dataset_info.json").read_text())
    state: dict[str, Any] = {
        "_data_files": [{"filename": path.name} for path in paths],
        "_fingerprint": hashlib.sha256((folder / IDENTITY_FILE).read_bytes()).hexdigest()[:16],
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    write_whole(folder / "state.json", json.dumps(state, indent=2) + "\n")
    for left in folder.glob(".data-*"):
        left.unlink(missing_ok=True)
