"""Caches of a convolutional VAE's latents, so that a run encodes each image once and not once an epoch.

A cache is a folder that `datasets.load_from_disk` opens: shards of rows in the source's order, and `latents.json`,
which identifies what they were made from.
"""

import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.utils.data
from datasets import Dataset, DatasetInfo, Features, Value

from .. import stopping
from ..files import hash_tensors, write_whole
from ..models.tokenizer_ldae import ConvVAETokenizer
from ..shards import ShardFolder, ShardWriter, choose_rows_per_shard, shard_ranges
from .augment import prepare_images
from .batch import Batch, Decoder, WorkerBatch
from .loader import make_torch_loader
from .rows import decode_rows, hash_source, nested_column, nested_feature, read_rows
from .sources import ImageSource


IDENTITY_FILE = "latents.json"


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
    """Encode the centre crop of every image of a source, and of its mirror image, and store the latents in a folder.

    Existing shards are kept, and each process writes its share of the missing ones. All processes must see the folder;
    wait for all of them before [`open_latents`].

    Args:
        tokenizer ([`ConvVAETokenizer`]): A fitted tokenizer; it is moved to `device`. Latents are scaled as the model
            takes them.
        source ([`ImageSource`]): The images; not streamed.
        folder (`str` or path): The cache; it is created if it does not exist.
        image_size (`int`, in pixels): Side of the images, like the next two as for [`ImageLoader`].
        num_channels (`int`, defaults to 3): 3 (RGB) or 1 (luminance).
        decode_size (`int`, *optional*, in pixels): See [`DataConfig`].
        horizontal_flip (`bool`, defaults to `False`): Also encode the mirror images.
        dtype (`str`, defaults to `"float16"`): `"float16"` or `"float32"`. Rounding latents of unit variance to
            float16 is an error of 2e-4 (root mean square), about a fiftieth of the first noise level of `linear_beta`
            (0.01) and less of `linear_gamma2` (0.03).
        batch_size (`int`, defaults to 64): Images encoded at a time.
        rows_per_shard (`int`, *optional*): By default a 64th of the rows, from 256 to 8,192. A kill loses one shard.
        rank (`int`, defaults to 0): This process.
        world_size (`int`, defaults to 1): Number of processes.
        num_workers (`int`, defaults to 0): Worker processes that decode images.
        device (`torch.device` or `str`, defaults to `"cpu"`): Device to encode on.
        on_rows (`Callable[[int], object]`, *optional*): Called with the number of rows of each finished batch.

    Returns:
        `Counter`: Conversions and skips in this process, as [`ImageLoader`] counts them. An unreadable row is kept
        without latents.

    Raises:
        ValueError: If the source is streamed, the tokenizer is not fitted, the folder holds something else, or its
            cache was made from other images or with other settings; the message names the differences.

    Example:
    ```python
    >>> import tempfile
    >>> from ldae import LDAEConfig
    >>> from ldae.data import DataConfig, cache_latents, open_images, open_latents
    >>> from ldae.models.tokenizer_ldae import build_tokenizer
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
        raise ValueError(
            f"{source.description} is streamed, but latents are read in any order; give data.streaming=false."
        )
    if not bool(tokenizer.fitted):
        raise ValueError(
            "tokenizer.fitted=False: the tokenizer is not fitted, so its latents have no scale; fit it first."
        )
    count = len(source.dataset)
    rows_per_shard = rows_per_shard or choose_rows_per_shard(count)
    views, num_patches = 1 + horizontal_flip, (image_size // tokenizer.patch_size) ** 2
    shape = (views, num_patches, tokenizer.latent_dim)  # (V, N, d)
    decoder = Decoder(num_channels, decode_size or image_size, reduced=source.reduced_decoding)
    cache = ShardFolder(Path(folder), "latent_cache", "latents", IDENTITY_FILE)
    network = (tokenizer.patch_size, tokenizer.num_channels, tokenizer.latent_scaling, tokenizer.conv_vae_config)
    identity = {
        "tokenizer": hash_tensors(network, tokenizer.state_dict()),
        "images": hash_source(source),
        "rows": count,
        "rows_per_shard": rows_per_shard,
        "has_labels": source.label_column is not None,
        "image_size": image_size,
        "decode_size": decoder.size,
        "reduced_decoding": decoder.reduced,
        "num_channels": num_channels,
        "shape": list(shape),
        "dtype": dtype,
    }
    cache.claim(identity, notes={"source": source.description})
    ranges = shard_ranges(count, rows_per_shard)
    shards = [(Path(folder) / f"data-{i:05d}-of-{len(ranges):05d}.arrow", rows) for i, rows in enumerate(ranges)]
    missing = [(path, rows) for path, rows in shards[rank::world_size] if not path.is_file()]
    tokenizer.to(device).eval()

    @torch.no_grad()
    def encode(batch: Batch) -> np.ndarray:
        pixels = prepare_images(batch.images.to(device), batch.positions, 0, image_size=image_size)  # (b, C, S, S)
        with torch.autocast(pixels.device.type, enabled=False):
            z = [tokenizer.encode_images(view) for view in (pixels, pixels.flip(-1))[:views]]
        return torch.stack(z, dim=1).to(getattr(torch, dtype)).cpu().numpy()  # (b, V, N, d)

    label_type = {} if source.label_column is None else {"label": Value("int64")}
    features = Features({"row": Value("int64"), **label_type, "latents": nested_feature(shape, dtype)})
    schema, counts = features.arrow_schema, Counter[str]()
    chunks = [list(rows[i : i + batch_size]) for _, rows in missing for i in range(0, len(rows), batch_size)]
    batches = zip(chunks, make_torch_loader(_DecodedRows(source, decoder), num_workers, chunks), strict=True)
    for path, rows in missing:
        with ShardWriter(path, lambda partial: pa.ipc.new_stream(partial, schema)) as shard:
            for chunk, item in islice(batches, -(-len(rows) // batch_size)):
                stopping.check()
                counts.update(item.counts)
                at = item.batch.positions.numpy() - chunk[0]  # the rows of a chunk are consecutive
                values, unreadable = np.zeros((len(chunk), *shape), dtype), np.ones(len(chunk), bool)
                labels = np.full(len(chunk), -1)
                if len(at):
                    values[at], unreadable[at] = encode(item.batch), False
                    if item.batch.labels is not None:
                        labels[at] = item.batch.labels.numpy()
                columns = {"row": chunk, "label": labels, "latents": nested_column(values, unreadable)}
                shard.writer.write_batch(pa.record_batch([columns[name] for name in schema.names], schema=schema))
                if on_rows is not None:
                    on_rows(len(chunk))
    if all(path.is_file() for path, _ in shards):  # so the last process to arrive does it, or several do the same
        _finish(cache, features, [path for path, _ in shards])
    return counts


def open_latents(folder: str | os.PathLike[str], source: ImageSource) -> ImageSource:
    """Open the cache of a source, which [`ImageLoader`] reads in the same order as the source itself.

    Args:
        folder (`str` or path): A cache that [`cache_latents`], which checks its settings, has filled on all processes.
        source ([`ImageSource`]): The images that the latents were made from.

    Returns:
        [`ImageSource`] with a `latent_cache`, memory-mapped. Its columns are `row`, `label` (if there are labels) and
        `latents` `(V, N, d)`, of the image and with V = 2 of its mirror image too.

    Raises:
        ValueError: If the cache is not complete.
    """
    if not (Path(folder) / "state.json").is_file():
        raise ValueError(
            f"latent_cache={str(folder)!r} is not complete: some shards of {source.description} are missing."
        )
    dataset = Dataset.load_from_disk(str(folder), keep_in_memory=False)
    return replace(
        source,
        dataset=dataset.with_format("arrow"),
        image_column="latents",
        label_column=None if source.label_column is None else "label",
        latent_cache=str(folder),
    )


@dataclass(eq=False)
class _DecodedRows(torch.utils.data.Dataset[WorkerBatch]):
    """Lists of rows, decoded to batches."""

    source: ImageSource
    decoder: Decoder

    def __getitem__(self, rows: list[int]) -> WorkerBatch:
        return decode_rows(self.source, self.decoder, rows, *read_rows(self.source, rows))


def _finish(cache: ShardFolder, features: Features, paths: list[Path]) -> None:
    """Write the files that make a data set of the shards, and remove what killed starts left."""
    folder = cache.path
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
    cache.clear(".data-*")
