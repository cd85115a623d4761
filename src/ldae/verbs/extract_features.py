"""`ldae extract_features CHECKPOINT --output_dir DIR`: the features of a whole data set as a table."""

import dataclasses
import io
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from accelerate import Accelerator

from ldae.checkpoints import hash_weights
from ldae.data import DataConfig, ImageSource, describe_counts, open_images
from ldae.errors import one_line
from ldae.evaluation.encoder import PooledEncoder
from ldae.extraction.card import describe_skip, write_dataset_card
from ldae.extraction.folder import DATA_FOLDER, IDENTITY_FILE
from ldae.extraction.index import INDEX_FOLDER, build_index, import_faiss, indexed_column
from ldae.extraction.reader import FeatureReader
from ldae.extraction.rows import CroppedPixels, Pixels, ProcessedPixels, model_input
from ldae.extraction.table import Extraction, extract_table
from ldae.hub.upload import CARD_FILE, upload_files
from ldae.places import is_address
from ldae.processes import choose_device, make_accelerator
from ldae.training.progress import peak_memory_gib, progress_bar
from ldae.verbs.inputs import data_config, open_at
from ldae.verbs.options.use import ExtractFeaturesOptions


NAMED_SKIPS = 5  # unreadable images that are named on the screen


def run(options: ExtractFeaturesOptions) -> int:
    """Run the verb; the exit status is 0, or 2 if the Hub refused the table.

    Raises:
        ValueError: If an option, the checkpoint, the data or the folder is refused.
    """
    if options.output_dir is None:
        raise ValueError("output_dir is missing; give --output_dir, a folder for the table.")
    local_only = "index" if options.index else "push_to_hub" if options.push_to_hub else None
    if local_only and is_address(options.output_dir):
        raise ValueError(
            f"{local_only}={getattr(options, local_only)} needs the table on this machine; give a local --output_dir "
            f"in place of {options.output_dir!r}."
        )
    if options.index:
        import_faiss()
        if options.pool != "mean":
            raise ValueError("index=true needs pool='mean'; with pool='none' a row has many features.")
    accelerator = make_accelerator(cpu=options.device == "cpu")
    device = choose_device(options.device, accelerator.device)
    with accelerator.main_process_first():  # what is downloaded or prepared is so once
        data = data_config(options)
        source = open_images(data, other_columns=[] if options.columns == ["none"] else options.columns)
        reader, pixels = open_reader(options, device)
        if isinstance(pixels, CroppedPixels):
            pixels = dataclasses.replace(pixels, reduced=source.reduced_decoding)
    done = _extract(options, data, source, reader, pixels, accelerator)
    status = 0
    if accelerator.is_main_process:
        write_dataset_card(done.folder, done.noted, options.push_to_hub)
        _report(done, accelerator.num_processes)
        if options.index:
            for column in reader.columns:
                folder = str(done.folder)
                path = build_index(folder, indexed_column(folder, column), options.index_factory, data.cache_dir)
                print(f"Index: {path}")
        if options.push_to_hub:
            status = _push(Path(str(done.folder)), options)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return status


def open_reader(options: ExtractFeaturesOptions, device: torch.device) -> tuple[FeatureReader, Pixels]:
    """Open the checkpoint.

    Returns:
        The reader of its features, and the function that makes its input from an image file.

    Raises:
        ValueError: If the checkpoint cannot be loaded, or has no such layer or time step.
    """
    choices: dict[str, Any] = {
        "noisy": options.noisy,
        "seed": options.seed,
        "pool": options.pool,
        "dtype": torch.bfloat16 if options.mixed_precision == "bf16" else None,
    }
    pixels: Pixels
    where: dict[str, Any] = {"every": options.block_sweep, "noisy": options.noisy}
    encoder, choices["layers"], choices["timesteps"] = open_at(
        options.checkpoint, options.layers, options.timesteps, **where
    )
    if isinstance(encoder, PooledEncoder):  # its own image processor makes its pixels
        pixels = ProcessedPixels(encoder.processor, encoder.num_channels)
        choices["use_pooler"], encoder.processor = encoder.use_pooler, None
    else:
        pixels = CroppedPixels(encoder.num_channels, encoder.image_size)
    black = io.BytesIO()
    PIL.Image.new("RGB", (64, 64)).save(black, "PNG")
    example = model_input(torch.from_numpy(pixels(black.getvalue())[0])[None])  # (1, C, S, S)
    return FeatureReader(encoder.to(device), example.to(device), **choices), pixels


def _extract(
    options: ExtractFeaturesOptions,
    data: DataConfig,
    source: ImageSource,
    reader: FeatureReader,
    pixels: Pixels,
    accelerator: Accelerator,
) -> Extraction:
    names = ("dataset", "dataset_config", "split", "image_column", "label_column", "streaming")
    where = {"data": {name: getattr(data, name) for name in names}}
    if accelerator.is_main_process:
        print(f"Features of {source.description} by {options.checkpoint}, on {accelerator.num_processes} x ", end="")
        print(f"{reader.encoder.device}: " + ", ".join(_columns_in_words(reader)), flush=True)
    with progress_bar(source.num_examples, 0, accelerator.is_main_process, "images") as bar:
        return extract_table(
            reader,
            source,
            str(options.output_dir),
            pixels=pixels,
            settings=where if source.streaming else None,  # a stream's images are too far away to be compared
            notes={"checkpoint": options.checkpoint, "weights": hash_weights(options.checkpoint), **where},
            root=data.dataset if os.path.isdir(data.dataset) else None,
            dtype=options.dtype,
            batch_size=options.batch_size,
            rows_per_shard=options.rows_per_shard,
            num_workers=data.num_workers,
            on_images=_advance(bar, accelerator.num_processes),
        )


def _advance(bar: Any, num_processes: int) -> Callable[[int], object]:
    return lambda rows: bar.update(min(rows * num_processes, (bar.total or 2**62) - bar.n))


def _columns_in_words(reader: FeatureReader) -> list[str]:
    return [f"{name} {' x '.join(map(str, column.shape))}" for name, column in reader.columns.items()]


def _report(done: Extraction, num_processes: int) -> None:
    noted = done.noted
    if done.images:
        speed = done.images / done.seconds
        print(f"{done.images:,} images in {done.seconds:.1f} s, {speed:,.0f} a second", end="")
        print(f" in each of {num_processes} processes" if num_processes > 1 else "", end="")
        print(f"; peak memory {peak_memory_gib():.2f} GiB")
    else:
        print("All of it was there already.")
    print(f"{noted['rows']:,} rows in {done.folder}; {describe_counts(Counter(noted['counts']))}")
    for skip in noted["skipped"][:NAMED_SKIPS]:
        print(f"  not in the table: {describe_skip(skip, noted)}")
    if len(noted["skipped"]) > NAMED_SKIPS:
        print(f"  and {len(noted['skipped']) - NAMED_SKIPS:,} more, named in {done.folder / IDENTITY_FILE}")


def _push(folder: Path, options: ExtractFeaturesOptions) -> int:
    files = [CARD_FILE, IDENTITY_FILE]
    for pattern in (f"{DATA_FOLDER}/*.parquet", f"{INDEX_FOLDER}/*.faiss"):
        files += sorted(path.relative_to(folder).as_posix() for path in folder.glob(pattern) if path.name[0] != ".")
    try:
        url = upload_files(
            str(folder),
            files,
            str(options.push_to_hub),
            private=options.private,
            revision=None,
            token=None,
            commit_message="Upload features",
            repo_type="dataset",
        )
    except OSError as error:  # the Hub's refusals, the network, the login
        print(
            f"ldae extract_features: push_to_hub={options.push_to_hub!r}: the table is whole, but not on the Hub: "
            f"{one_line(error).rstrip('.')}; repeat the command.",
            file=sys.stderr,
        )
        return 2
    print(f"Pushed to {url}")
    return 0
