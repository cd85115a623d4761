"""Feature tables on a Ray cluster, and a callable that adds features to the batches of any Ray data set."""

import io
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import PIL.Image
import torch

from ldae import stopping
from ldae.data import UnreadableImageError, describe_counts
from ldae.data.batch import SKIPPED
from ldae.errors import explain
from ldae.evaluation.encoder import Layer
from ldae.processes import choose_device

from .folder import read_identity
from .job import TableJob
from .reader import open_reader
from .rows import decode_records, model_input
from .table import Extraction


logger = logging.getLogger(__name__)


class FeatureMapper:
    """Function of batches that adds the features of their images, for `map_batches` of a Ray data set.

    Rows whose images cannot be read are left out, with a warning.

    Args:
        checkpoint (`str`): Folder or Hub id of an l-DAE, a DDAE, or any vision model of `AutoModel`.
        image_column (`str`, defaults to `"image"`): Column of the images: arrays `(H, W, C)` or `(H, W)` as of
            `ray.data.read_images`, the bytes of files, or `{"bytes": ..., "path": ...}` as in data sets of the Hub.
        layers (`Sequence`, *optional*), timesteps: Where features are read; by default where the model does.
        device (`str`, *optional*): By default a GPU where the actor has one, else the CPU.

    Raises:
        ValueError: If the checkpoint cannot be loaded, or has no such layer or time step.

    Example:
    ```python
    >>> import numpy as np, tempfile
    >>> from ldae import LDAEConfig, LDAEModel
    >>> from ldae.extraction.ray_engine import FeatureMapper
    >>> run = tempfile.mkdtemp()
    >>> LDAEModel(LDAEConfig.from_size("nano", image_size=16, patch_size=4, latent_dim=8)).save_pretrained(run)
    >>> batch = {"id": np.arange(2), "image": np.zeros((2, 20, 30, 3), np.uint8)}
    >>> {name: values.shape for name, values in FeatureMapper(run, device="cpu")(batch).items()}
    {'id': (2,), 'image': (2, 20, 30, 3), 'features': (2, 128)}

    ```

    On a cluster: `images.map_batches(FeatureMapper, fn_constructor_args=(run,), concurrency=4, num_gpus=1,
    batch_size=256)`.
    """

    def __init__(
        self,
        checkpoint: str,
        image_column: str = "image",
        *,
        layers: Sequence[Layer] | None = None,
        timesteps: Sequence[int] | None = None,
        device: str | None = None,
    ) -> None:
        self.reader, self.pixels = open_reader(checkpoint, choose_device(device), layers=layers, timesteps=timesteps)
        self.image_column = image_column

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the batch's readable rows with their features `(b, *shape)`.

        Raises:
            ValueError: If the batch has no such column of images.
        """
        if self.image_column not in batch:
            raise ValueError(
                f"image_column={self.image_column!r} does not exist; choose one of {', '.join(map(repr, batch))}."
            )
        counts: Counter[str] = Counter()
        images, kept, unreadable = decode_records(
            lambda record: self.pixels(_as_file(record)), batch[self.image_column], counts
        )
        if unreadable:
            skips = Counter(f"{SKIPPED} {reason}" for reason in unreadable.values())
            logger.warning("%d rows are left out: %s", len(unreadable), describe_counts(skips))
        rows = {name: values[kept] for name, values in batch.items()}
        if images is None:
            return rows | {name: np.zeros((0, *shape), np.float32) for name, shape in self.reader.columns.items()}
        pixels = model_input(images.to(self.reader.encoder.device))  # (b, C, S, S)
        features = self.reader(pixels, torch.arange(len(kept), device=pixels.device))
        return rows | {name: values.float().cpu().numpy() for name, values in features.items()}


def _as_file(record: Any) -> Any:
    """Return what `decode_image` takes; an array is made an image file."""
    if not isinstance(record, np.ndarray):
        return record
    file = io.BytesIO()
    try:
        PIL.Image.fromarray(record[..., 0] if record.shape[2:] == (1,) else record).save(file, "TIFF")
    except (TypeError, ValueError) as error:
        raise UnreadableImageError(f"an array {record.shape} of {record.dtype} is no image") from error
    return file.getvalue()


class _ShardWriter:
    """Actor that writes whole shards, or a stream's parts."""

    def __init__(self, open_job: Callable[[torch.device], TableJob], folder: str) -> None:
        self.open_job, self.folder = open_job, folder
        self.job: TableJob | None = None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Write a shard or a part; what was refused is returned, because Ray keeps little of an error but its text."""
        rows: list[int] = []
        try:
            if self.job is None:
                with suppress(OSError):  # relative paths are the driver's, where this machine has its folder
                    os.chdir(self.folder)
                self.job = self.open_job(choose_device(None))
            number = int(row["number"])
            # An actor that died may have finished some shards of the part.
            images = self.job.write([number], self.job.finished(number), on_images=rows.append)
        except Exception as error:
            refused = explain(error)
            if refused is None:
                raise
            return {"images": 0, "rows": sum(rows), "refused": refused}
        return {"images": images, "rows": sum(rows), "refused": ""}


def write_table_on_ray(
    job: TableJob,
    open_job: Callable[[torch.device], TableJob],
    *,
    actors: int | None = None,
    on_images: Callable[[int], object] | None = None,
) -> Extraction:
    """Write what is missing of a table by the actors of a Ray cluster, each one shard after the other.

    The cluster is the one of `RAY_ADDRESS`, one that `ray start` began on this machine, or a new one of this machine.
    Each actor has a GPU where the cluster has any, and a CPU core for itself and for each of its loader's workers. Ray
    starts an actor that dies again, on another machine if need be, and gives it the shard once more.

    Args:
        job ([`~ldae.extraction.job.TableJob`]): The table, with images and a folder that every machine of the cluster
            reaches.
        open_job (`Callable`): Makes the same job on a device; it is called in each actor, so it must be picklable.
        actors (`int`, *optional*): Number of actors; by default one for each GPU, or as many as the cores allow.
        on_images (`Callable[[int], object]`, *optional*): Called with the number of rows of each finished shard.

    Returns:
        [`~ldae.extraction.table.Extraction`].

    Raises:
        ValueError: If Ray is not installed, the cluster is too small for one actor, or an actor refuses the job.
    """
    ray = import_ray()
    finished = job.finished()
    missing = job.missing(finished)
    images, begun_at = 0, time.perf_counter()
    if missing:
        if not ray.is_initialized():
            ray.init(logging_level=logging.WARNING)
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        ray.data.DataContext.get_current().enable_progress_bars = False
        count, needs = _plan(ray, actors, len(missing), 1 + job.num_workers)
        numbers = ray.data.from_items([{"number": number} for number in missing], override_num_blocks=len(missing))
        written = numbers.map(
            _ShardWriter,
            fn_constructor_args=(open_job, os.getcwd()),
            compute=ray.data.ActorPoolStrategy(size=count),
            **needs,
        )
        for row in written.iter_rows():
            stopping.check()
            if row["refused"]:
                raise ValueError(row["refused"])
            images += row["images"]
            if on_images is not None:
                on_images(row["rows"])
    seconds = time.perf_counter() - begun_at
    job.conclude(finished)
    return Extraction(job.place.path, read_identity(job.place.path), images, seconds)


def import_ray() -> Any:
    """Import Ray.

    Raises:
        ValueError: If it is not installed.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ValueError("engine='ray' needs Ray; install it with: pip install 'ldae[ray]'") from error
    return ray


def _plan(ray: Any, actors: int | None, most: int, cores: int) -> tuple[int, dict[str, Any]]:
    """Choose the number of actors, and what each of them reserves."""
    machines = [machine["Resources"] for machine in ray.nodes() if machine["Alive"]]
    gpus = int(sum(machine.get("GPU", 0) for machine in machines))
    fitting = sum(int(machine.get("CPU", 0)) // cores for machine in machines if not gpus or machine.get("GPU", 0))
    if not fitting:
        raise ValueError(
            f"num_workers={cores - 1} makes an actor need {cores} cores, which no machine of the Ray cluster has"
            f"{' beside a GPU' if gpus else ''}; give fewer."
        )
    possible = min(gpus, fitting) if gpus else fitting
    return min(actors or possible, possible, most), {"num_cpus": cores, "num_gpus": 1 if gpus else 0}
