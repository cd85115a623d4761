"""Features of a whole data set as a table: over several processes, resumed after a kill, in constant memory."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Unpack

from accelerate.utils import broadcast_object_list

from ldae.data import ImageSource
from ldae.files import AnyPath, FolderName
from ldae.processes import join_processes

from .folder import read_identity
from .job import TableJob, TableOptions
from .reader import FeatureReader


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
    folder: FolderName,
    *,
    on_images: Callable[[int], object] | None = None,
    **options: Unpack[TableOptions],
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
        on_images (`Callable[[int], object]`, *optional*): Called with the number of rows of each finished batch.
        options: `pixels`, `settings`, `notes`, `root`, `dtype`, `rows_per_shard`, `batch_size` and `num_workers` of
            [`~ldae.extraction.job.TableJob`].

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
    state = join_processes()
    with state.main_process_first():
        job = TableJob(reader, source, folder, **options)
    return write_table(job, on_images)


def write_table(job: TableJob, on_images: Callable[[int], object] | None = None) -> Extraction:
    """Write what is missing of a table; every process of a launch calls it with the same job.

    Raises:
        ValueError: If no image can be read.
    """
    state = join_processes()
    # As the main process sees it, so that all divide the same rest.
    finished = broadcast_object_list([job.finished()])[0]
    missing, rank, world_size = job.missing(finished), state.process_index, state.num_processes
    begun_at = time.perf_counter()
    if job.source.streaming and len(missing) < world_size:  # all read all parts, and divide their shards
        images = job.write(missing, finished, (rank, world_size), on_images)
    else:
        images = job.write(missing[rank::world_size], finished, on_images=on_images)
    seconds = time.perf_counter() - begun_at
    state.wait_for_everyone()
    if state.is_main_process:
        job.conclude(finished)
    state.wait_for_everyone()
    return Extraction(job.place.path, read_identity(job.place.path), images, seconds)
