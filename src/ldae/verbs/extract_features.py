"""`ldae extract_features CHECKPOINT --output_dir DIR`: the features of a whole data set as a table."""

import argparse
import io
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from accelerate import Accelerator

from ldae.backbone import load_backbone
from ldae.data import DataConfig, ImageSource, describe_counts, open_images
from ldae.extraction.card import describe_skip, write_dataset_card
from ldae.extraction.folder import DATA_FOLDER, IDENTITY_FILE
from ldae.extraction.index import COSINE, INDEX_FOLDER, build_index, import_faiss, indexed_column
from ldae.extraction.reader import POOLS, FeatureReader
from ldae.extraction.rows import CroppedPixels, Pixels, ProcessedPixels, model_input
from ldae.extraction.table import DTYPES, Extraction, extract_table
from ldae.hub.upload import CARD_FILE, upload_files
from ldae.training.progress import peak_memory_gib, progress_bar
from ldae.verbs.probe_options import (
    add_feature_options,
    add_shared_options,
    block_choices,
    boolean,
    data_config,
    load_config,
    load_encoder,
    parse,
)


DATA_OPTIONS = "dataset dataset_config split image_column label_column streaming num_workers cache_dir".split()
NAMED_SKIPS = 5  # unreadable images that are named on the screen


def make_parser() -> argparse.ArgumentParser:
    """The options of the verb."""
    parser = argparse.ArgumentParser(
        "ldae extract_features",
        description="Write the features of every image of a data set, with its labels and other columns, as a table of "
        "parquet files that `datasets` opens. Several processes (accelerate launch) share the work. The same command "
        "again goes on where it was stopped or killed.",
        allow_abbrev=False,
    )
    add_shared_options(parser, DATA_OPTIONS)
    add_feature_options(parser)
    parser.add_argument("--pool", choices=POOLS, default="mean", help="none keeps the features of all places")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the stored features")
    parser.add_argument(
        "--columns", help="other columns to keep, such as caption,url, or none (default: all plain ones)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the noise of --noisy (default: 0)")
    parser.add_argument("--batch_size", type=int, default=256, help="images of a forward (default: 256)")
    parser.add_argument("--rows_per_shard", type=int, help="rows of a file (default: by size, at most 8192)")
    parser.add_argument("--index", type=boolean, nargs="?", const=True, default=False, help="make a FAISS index too")
    parser.add_argument("--index_factory", default=COSINE, help=f"which, in FAISS's words (default: {COSINE}, cosine)")
    parser.add_argument("--push_to_hub", metavar="REPO_ID", help="upload the table as a data set")
    parser.add_argument("--private", type=boolean, nargs="?", const=True, default=False, help="for a new repository")
    return parser


def main(argv: list[str]) -> int:
    """Runs the verb.

    Args:
        argv: the command line without the program's name.

    Returns:
        The exit status: 0, or 2 where the Hub refused.

    Raises:
        ValueError: where an option, the checkpoint, the data or the folder is refused.
    """
    options = parse(make_parser(), argv)
    if options.output_dir is None:
        raise ValueError("output_dir is missing; say with --output_dir where the table goes.")
    if options.index:
        import_faiss()
        if options.pool != "mean":
            raise ValueError("index=true is not possible with pool='none'; an index needs pool='mean'.")
    accelerator = Accelerator(cpu=options.device == "cpu")
    device = accelerator.device if options.device is None else torch.device(options.device)
    if accelerator.num_processes > 1 and device.type != accelerator.device.type:
        raise ValueError(f"device={options.device} is not possible with several processes; leave it out, or give cpu.")
    with accelerator.main_process_first():  # what is downloaded or prepared is so once
        data = data_config(options)
        source = open_images(data, other_columns=chosen_columns(options.columns))
        reader, pixels = open_reader(options, accelerator.device if accelerator.num_processes > 1 else device)
    done = _extract(options, data, source, reader, pixels, accelerator)
    status = 0
    if accelerator.is_main_process:
        write_dataset_card(done.folder, done.noted, options.push_to_hub)
        _report(done, accelerator.num_processes)
        if options.index:
            for column in reader.columns:
                path = build_index(
                    done.folder, indexed_column(done.folder, column), options.index_factory, data.cache_dir
                )
                print(f"Index: {path}")
        if options.push_to_hub:
            status = _push(done.folder, options)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return status


def open_reader(options: argparse.Namespace, device: torch.device) -> tuple[FeatureReader, Pixels]:
    """
    The model that the options stand for, as what reads features of pixels, and what makes pixels of images.

    Raises:
        ValueError: where the checkpoint cannot be loaded, or has no such layer or time step.
    """
    choices: dict[str, Any] = {
        "noisy": options.noisy,
        "seed": options.seed,
        "pool": options.pool,
        "dtype": torch.bfloat16 if options.mixed_precision == "bf16" else None,
    }
    pixels: Pixels
    config = load_config(options.checkpoint)
    if config.model_type in ("ldae", "ddae"):
        model, choices["layers"], choices["timesteps"] = load_encoder(options, config)
        pixels = CroppedPixels(model.config.num_channels, model.config.image_size)
    else:
        block_choices(options, config)  # refuses them
        model, processor, choices["use_pooler"] = load_backbone(options.checkpoint, "checkpoint")
        pixels = ProcessedPixels(processor, getattr(model.config, "num_channels", 3))
    black = io.BytesIO()
    PIL.Image.new("RGB", (64, 64)).save(black, "PNG")
    example = model_input(torch.from_numpy(pixels(black.getvalue())[0])[None])  # (1, C, S, S)
    return FeatureReader(model.to(device), example.to(device), **choices), pixels


def chosen_columns(text: str | None) -> list[str] | None:
    """`"caption,url"` as a list, `"none"` as an empty one, `None` for all plain ones."""
    return None if text is None else [] if text == "none" else text.split(",")


def _extract(
    options: argparse.Namespace,
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
            options.output_dir,
            pixels=pixels,
            settings=where if source.streaming else None,  # a stream's images are too far away to be compared
            notes={"checkpoint": options.checkpoint, **where},
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


def _push(folder: Path, options: argparse.Namespace) -> int:
    files = [CARD_FILE, IDENTITY_FILE]
    for pattern in (f"{DATA_FOLDER}/*.parquet", f"{INDEX_FOLDER}/*.faiss"):
        files += sorted(path.relative_to(folder).as_posix() for path in folder.glob(pattern) if path.name[0] != ".")
    try:
        url = upload_files(
            str(folder),
            files,
            options.push_to_hub,
            private=options.private,
            revision=None,
            token=None,
            commit_message="Upload features",
            repo_type="dataset",
        )
    except OSError as error:  # the Hub's refusals, the network, the login
        print(f"ldae extract_features: the table is whole, but not on the Hub: {error}")
        return 2
    print(f"Pushed to {url}")
    return 0
