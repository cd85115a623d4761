"""`ldae extract_features CHECKPOINT --output_dir DIR`: the features of a whole data set as a table."""

import os
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from ldae.checkpoints import hash_weights
from ldae.data import describe_counts, open_images
from ldae.errors import one_line
from ldae.extraction.card import describe_skip, write_dataset_card
from ldae.extraction.folder import DATA_FOLDER, IDENTITY_FILE
from ldae.extraction.index import INDEX_FOLDER, build_index, empty_index, import_faiss, indexed_column
from ldae.extraction.job import TableJob
from ldae.extraction.ray_engine import import_ray, write_table_on_ray
from ldae.extraction.reader import open_reader
from ldae.extraction.table import Extraction, write_table
from ldae.hub.upload import CARD_FILE, upload_files
from ldae.places import check_outside, is_address, refuse_pattern
from ldae.processes import choose_device, make_accelerator
from ldae.training.progress import peak_memory_gib, progress_bar
from ldae.verbs.inputs import data_config
from ldae.verbs.options.use import ExtractFeaturesOptions


NAMED_SKIPS = 5  # unreadable images that are named on the screen


def extract_features(options: ExtractFeaturesOptions) -> int:
    """Run `ldae extract_features`; the exit status is 2 if the Hub refused the table."""
    if options.output_dir is None:
        raise ValueError("output_dir is missing; give --output_dir, a folder for the table.")
    local_only = "index" if options.index else "push_to_hub" if options.push_to_hub else None
    if local_only and is_address(options.output_dir):
        raise ValueError(
            f"{local_only}={getattr(options, local_only)} needs the table on this machine; give a local --output_dir "
            f"in place of {options.output_dir!r}."
        )
    if options.engine == "ray":
        import_ray()
    if options.index:
        import_faiss()
        refuse_pattern(options.output_dir, "output_dir")
        if options.pool != "mean":
            raise ValueError("index=true needs pool='mean'; with pool='none' a row has many features.")
    accelerator = make_accelerator(cpu=options.device == "cpu" or options.engine == "ray")
    if options.engine == "ray":
        done, columns = _extract_on_ray(options, accelerator)
    else:
        done, columns = _extract(options, accelerator)
    status = 0
    if accelerator.is_main_process:
        write_dataset_card(done.folder, done.noted, options.push_to_hub)
        _report(done, accelerator.num_processes)
        folder = str(done.folder)
        if options.index:
            cache_dir = data_config(options).cache_dir
            for column in columns:
                index = build_index(folder, indexed_column(folder, column), options.index_factory, cache_dir)
                print(f"Index: {index}")
        if options.push_to_hub:
            status = _push(Path(folder), options)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return status


def open_job(options: ExtractFeaturesOptions, device: torch.device) -> TableJob:
    """Open the images, the checkpoint and, once nothing else is refused, the folder.

    Raises:
        ValueError: If one of them is refused.
    """
    data = data_config(options)
    check_outside(data.dataset, str(options.output_dir))
    source = open_images(data, other_columns=[] if options.columns == ["none"] else options.columns)
    reader, pixels = open_reader(
        options.checkpoint,
        device,
        layers=options.layers,
        timesteps=options.timesteps,
        every=options.block_sweep,
        join=options.join,
        noisy=options.noisy,
        seed=options.seed,
        pool=options.pool,
        dtype=torch.bfloat16 if options.mixed_precision == "bf16" else None,
        reduced=source.reduced_decoding,
    )
    if options.index:
        for shape in reader.columns.values():
            empty_index(shape[-1], options.index_factory)
    names = ("dataset", "dataset_config", "split", "image_column", "label_column", "streaming")
    where = {"data": {name: getattr(data, name) for name in names}}
    return TableJob(
        reader,
        source,
        str(options.output_dir),
        pixels=pixels,
        settings=where if source.streaming else None,  # a stream's images are too far away to be compared
        notes={"checkpoint": options.checkpoint, "weights": hash_weights(options.checkpoint), **where},
        root=data.dataset if os.path.isdir(data.dataset) else None,
        dtype=options.dtype,
        rows_per_shard=options.rows_per_shard,
        batch_size=options.batch_size,
        num_workers=data.num_workers,
    )


def _extract(options: ExtractFeaturesOptions, accelerator: Accelerator) -> tuple[Extraction, list[str]]:
    """Write the table by the processes of this launch; return its columns of features too."""
    with accelerator.main_process_first():  # what is downloaded or prepared is so once
        job = open_job(options, choose_device(options.device, accelerator.device))
    main = accelerator.is_main_process
    if main:
        _announce(options, job, f"{accelerator.num_processes} x {job.reader.encoder.device}")
    with progress_bar(job.source.num_examples, 0, main, "images") as bar:
        return write_table(job, _advance(bar, accelerator.num_processes)), list(job.reader.columns)


def _extract_on_ray(options: ExtractFeaturesOptions, accelerator: Accelerator) -> tuple[Extraction, list[str]]:
    """Write the table by the actors of a Ray cluster; return its columns of features too."""
    if accelerator.num_processes > 1:
        raise ValueError("engine='ray' starts its own processes; leave accelerate launch out.")
    if options.device is not None:
        raise ValueError(
            f"device={options.device!r} does not go with engine='ray', whose actors take the GPUs of the cluster; "
            "leave it out."
        )
    job = open_job(options, torch.device("cpu"))
    _announce(options, job, "a Ray cluster")
    with progress_bar(job.source.num_examples, 0, True, "images") as bar:
        open_again = partial(open_job, replace(options, index=False))  # an actor need not have FAISS
        done = write_table_on_ray(job, open_again, actors=options.actors, on_images=_advance(bar, 1))
    return done, list(job.reader.columns)


def _announce(options: ExtractFeaturesOptions, job: TableJob, where: str) -> None:
    columns = [f"{name} {' x '.join(map(str, shape))}" for name, shape in job.reader.columns.items()]
    print(
        f"Features of {job.source.description} by {options.checkpoint}, on {where}: {', '.join(columns)}", flush=True
    )


def _advance(bar: Any, num_processes: int) -> Callable[[int], object]:
    return lambda rows: bar.update(min(rows * num_processes, (bar.total or 2**62) - bar.n))


def _report(done: Extraction, num_processes: int) -> None:
    noted = done.noted
    if done.images:
        speed = done.images / done.seconds
        print(f"{done.images:,} images in {done.seconds:.1f} s, {speed:,.0f} a second", end="")
        print(f" in each of {num_processes} processes" if num_processes > 1 else "", end="")
        print(f"; peak memory {peak_memory_gib():.2f} GiB")
    else:
        print("The table was complete already.")
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
