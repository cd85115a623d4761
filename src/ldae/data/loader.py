"""The endless, sharded, resumable loader of pre-training."""

import atexit
import logging
import os
import signal
import threading
import weakref
from collections import Counter
from collections.abc import Iterator
from itertools import count
from typing import Any

import torch
import torch.utils.data

from ldae.sections import DataConfig

from .augment import RandomCrop
from .batch import Batch, CachedLatents, Decoder, WorkerBatch
from .order import ShuffledExamples, micro_steps_per_step, run_positions
from .sources import ImageSource
from .stream import FIRST_STATE, ShuffledStream


logger = logging.getLogger(__name__)
PREFETCHED_BATCHES = 4  # for each worker


class ImageLoader:
    """Endless iterator of one process's micro-batches.

    The examples of a run have positions 0, 1, 2, ...; step s covers `[s * total, (s + 1) * total)`, and its micro-step
    m on process r the positions `s * total + (m * world_size + r) * b + [0, b)`. A source that is not streamed has the
    same example at a position for any micro-batch size and any number of processes and workers: each epoch reads a
    permutation of all rows, keyed on (seed, epoch), and an unreadable image is replaced by the next readable one of
    the epoch. A streamed source is divided over processes and workers, see [`~ldae.data.stream.StreamPart`]; its order
    depends on their numbers. Cached latents are read in the same order as the images they were made from.

    If there is a GPU, batches arrive in pinned memory; the caller moves them.

    Args:
        source (`ImageSource`): The images; every process opens them itself.
        config (`DataConfig`): Gives `decode_size`, `num_workers` and `shuffle_window`. With `crops_whole_images`,
            images are cropped to boxes drawn from `seed` and their positions while they are decoded.
        image_size (`int`, in pixels): Side of the decoded images, unless `config.decode_size` is given.
        num_channels (`int`): 3 (RGB) or 1 (luminance).
        micro_batch_size (`int`): Examples of one batch of this process.
        total_batch_size (`int`): Examples of one optimiser step of all processes together.
        rank (`int`): This process.
        world_size (`int`): Number of processes.
        seed (`int`): Seed of the order.
        start (`dict`, *optional*): State of [`~ImageLoader.state_dict`] in this process to continue from.

    Raises:
        ValueError: If sizes do not divide, or `start` does not fit; while iterating, if no image can be read.

    Example:
    ```python
    >>> from ldae.data import DataConfig, ImageLoader, open_images
    >>> config = DataConfig("digits", num_workers=0)
    >>> sizes = dict(image_size=16, num_channels=3, micro_batch_size=4, total_batch_size=8)
    >>> loader = ImageLoader(open_images(config), config, **sizes, rank=1, world_size=2, seed=0)
    >>> batch = next(loader)
    >>> batch.images.shape, batch.positions.tolist()
    (torch.Size([4, 3, 16, 16]), [4, 5, 6, 7])

    ```
    """

    def __init__(
        self,
        source: ImageSource,
        config: DataConfig,
        *,
        image_size: int,
        num_channels: int,
        micro_batch_size: int,
        total_batch_size: int,
        rank: int,
        world_size: int,
        seed: int,
        start: dict[str, Any] | None = None,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank={rank} must be from 0 to world_size - 1 = {world_size - 1}.")
        self.source = source
        self.micro_steps = micro_steps_per_step(micro_batch_size, total_batch_size, world_size)
        self.counts: Counter[str] = Counter()  # conversions and skips of the first epoch, in this process
        crop = RandomCrop(seed, config.crop_scale) if config.crops_whole_images else None
        self._decoder: Any = (
            Decoder(num_channels, config.decode_size or image_size, crop, source.reduced_decoding)
            if source.latent_cache is None
            else CachedLatents()
        )
        self._num_workers = self._usable_workers(config.num_workers, world_size)
        # The settings that an order depends on; for a stream these include its division.
        self._identity: dict[str, Any] = {"streaming": source.streaming, "seed": seed}
        if source.streaming:
            self._identity |= {
                "world_size": world_size,
                "rank": rank,
                "num_workers": max(self._num_workers, 1),
                "shuffle_window": config.shuffle_window,
                "num_shards": source.dataset.num_shards,
            }
        else:
            self._identity["num_examples"] = len(source.dataset)
        self._layout = {"first": 0, "micro_batch_size": micro_batch_size, "rank": rank, "world_size": world_size}
        self._total_batch_size = total_batch_size
        self._yielded = 0  # micro-batches since position `first`
        self._next_worker = 0
        self._worker_states = [dict(FIRST_STATE) for _ in range(max(self._num_workers, 1))]
        if start is not None:
            self._continue_from(start)
        self._batches: Iterator[WorkerBatch] | None = None

    def __iter__(self) -> "ImageLoader":
        return self

    def __next__(self) -> Batch:
        if self._batches is None:
            self._batches = iter(self._make_loader())
            # Registered after torch's own hooks and therefore run before them; they wait five seconds for each worker.
            atexit.register(_close_at_exit, weakref.ref(self))
        item = next(self._batches)
        self.counts.update(item.counts)
        self._yielded += 1
        if item.state is not None:
            self._worker_states[item.worker] = item.state
            self._next_worker = (item.worker + 1) % len(self._worker_states)
        return item.batch

    @property
    def full_passes(self) -> int:
        """Times that every worker of this process has read all of a stream; 0 for a source that is not streamed."""
        return min(state["epoch"] for state in self._worker_states)

    @property
    def begins_again(self) -> bool:
        """True if a worker has read all of its part of a stream, so that it may now read what others have read."""
        return any(state["epoch"] for state in self._worker_states)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of this process after its last batch, in JSON types, whatever workers have prepared since.

        For a source that is not streamed it does not depend on the process, and at the end of a step another number of
        processes, micro-batch size or number of workers may continue from it.
        """
        step, micro_step = divmod(self._yielded, self.micro_steps)
        state: dict[str, Any] = {
            "position": self._layout["first"] + step * self._total_batch_size,
            "micro_step": micro_step,
            "micro_steps": self.micro_steps,
            "identity": dict(self._identity),
            "counts": dict(self.counts),
        }
        if self.source.streaming:
            state["workers"] = [dict(worker) for worker in self._worker_states]
            state["next_worker"] = self._next_worker
        return state

    def close(self) -> None:
        """End the workers; the loader continues with new ones when the next batch is requested."""
        if self._batches is not None:
            self._batches = None
            self._continue_from(self.state_dict())

    def _continue_from(self, start: dict[str, Any]) -> None:
        saved, ours = start["identity"], self._identity
        if saved != ours:
            changed = ", ".join(
                f"{key} was {saved.get(key)!r} and is {ours.get(key)!r}"
                for key in sorted({*saved, *ours})
                if saved.get(key) != ours.get(key)
            )
            raise ValueError(
                f"cannot continue reading {self.source.description} where the run stopped: {changed}. Start with the "
                "former values" + (", or train with data.streaming=false." if self.source.streaming else ".")
            )
        if start["micro_step"] and start["micro_steps"] != self.micro_steps:
            raise ValueError(
                f"the run stopped inside a step of {start['micro_steps']} micro-batches; start with the former "
                "micro_batch_size and world_size."
            )
        self._layout["first"] = start["position"]
        self._yielded = start["micro_step"]
        self.counts = Counter(start["counts"])
        if self.source.streaming:
            self._worker_states = [dict(worker) for worker in start["workers"]]
            self._next_worker = start["next_worker"]

    def _usable_workers(self, wanted: int, world_size: int) -> int:
        if not self.source.streaming:
            return wanted
        num_shards = self.source.dataset.num_shards
        shards = num_shards // world_size if num_shards % world_size == 0 else num_shards
        if wanted > shards:
            logger.warning(
                "%s has %d shard(s) for each process: reading with %d of %d workers. For more, write the data as at "
                "least %d parquet or .tar files, or use data.streaming=false",
                self.source.description,
                shards,
                shards,
                wanted,
                wanted * world_size,
            )
        return min(wanted, shards)

    def _make_loader(self) -> "torch.utils.data.DataLoader[WorkerBatch]":
        dataset: torch.utils.data.Dataset[WorkerBatch]
        sampler = None
        if self.source.streaming:
            dataset = ShuffledStream(
                self.source,
                self._decoder,
                seed=self._identity["seed"],
                window_size=self._identity["shuffle_window"],
                num_workers=len(self._worker_states),
                states=self._worker_states,
                next_worker=self._next_worker,
                start_number=self._yielded,
                layout=self._layout,
            )
        else:
            dataset = ShuffledExamples(self.source, self._decoder, self._identity["seed"])
            layout = dict(self._layout)  # the sampler holds no reference to this object
            sampler = (run_positions(number, **layout).tolist() for number in count(self._yielded))
        return make_torch_loader(dataset, self._num_workers, sampler)


def _close_at_exit(reference: "weakref.ref[ImageLoader]") -> None:
    loader = reference()
    if loader is not None:
        loader.close()


def make_torch_loader(
    dataset: "torch.utils.data.Dataset[WorkerBatch]", num_workers: int, sampler: Any = None
) -> "torch.utils.data.DataLoader[WorkerBatch]":
    """Make torch's loader of ready-made batches, with workers that leave signals to the main process."""
    return torch.utils.data.DataLoader(
        dataset,
        batch_size=None,  # the data set makes whole batches
        sampler=sampler,
        num_workers=num_workers,
        prefetch_factor=PREFETCHED_BATCHES if num_workers else None,
        worker_init_fn=leave_signals_to_main,
        pin_memory=torch.cuda.is_available(),
    )


def leave_signals_to_main(worker: int) -> None:
    """Make a worker ignore Ctrl-C, SIGUSR1 and SIGTERM, unless its own main process sends the latter.

    They reach all processes of a job at once; the main process decides what follows, and may need more batches before
    it saves. SIGTERM cannot be ignored altogether, because `multiprocessing` ends remaining workers by it at exit and
    waits for them. Workers whose main process is killed end by themselves.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):
        return  # macOS, where a SIGTERM to the whole job also ends the workers
    main_process = os.getppid()
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # also in threads that start from here on

    def wait_for_main() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != main_process:
            logger.debug("worker %d ignores a SIGTERM", worker)
        os._exit(0)

    threading.Thread(target=wait_for_main, daemon=True).start()
