"""Checkpoints of a run: written atomically, without pickles, and rotated."""

import json
import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor

from ldae.errors import RunError
from ldae.files import open_permissions


INCOMPLETE_PREFIX = ".incomplete-"  # of a checkpoint that is being written
DAMAGED_PREFIX = "damaged-"  # of a checkpoint that could not be read when a run resumed
PARTS = ("model", "optimizer", "ema")

# Tensors by part and name. model: weights and persistent buffers. optimizer: AdamW's state, by `weight name/state
# name`; empty before the first step. ema: averaged weights; empty where there is no average.
Parts = dict[str, dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk.

    Its tensors are in `model.safetensors`, `optimizer.safetensors` and `ema.safetensors`, or if the run was sharded in
    one `shard-*.safetensors` of each process, which `torch.distributed.checkpoint` wrote.
    """

    path: Path  # its folder
    state: dict[str, Any]  # values that JSON can hold: images seen, each process's position in the data, ...

    @property
    def images_seen(self) -> int:
        """Images seen when it was written."""
        return self.state["images_seen"]

    @property
    def sharded(self) -> bool:
        """True if the processes wrote a part each."""
        return "shards" in self.state

    def read(self, part: str, prefix: str = "") -> dict[str, torch.Tensor]:
        """Read the whole tensors of a part onto the CPU by name, or only those whose name begins with `prefix`.

        A part that was not saved, such as the average of a run without one, is empty.
        """
        if self.sharded:
            return _read_from_shards(self.path, part, prefix)
        file = self.path / f"{part}.safetensors"
        if not file.exists():
            return {}
        with safe_open(file, "pt") as tensors:
            return {name: tensors.get_tensor(name) for name in tensors.offset_keys() if name.startswith(prefix)}


def save_checkpoint(folder: Path, parts: Parts, state: dict[str, Any], keep: int) -> Path:
    """Write a checkpoint into a `checkpoints/` folder, rename it into place, and remove all but the newest `keep`.

    Only the main process calls it, or every process if the tensors are shards: then each writes its own.

    Raises:
        RunError: If it cannot be written. Older checkpoints are kept.
    """
    name = f"images-{state['images_seen']:012d}"
    incomplete, final = folder / f"{INCOMPLETE_PREFIX}{name}", folder / name
    sharded = any(isinstance(tensor, DTensor) for tensor in parts["model"].values())
    is_main = not sharded or torch.distributed.get_rank() == 0
    try:
        if is_main:
            shutil.rmtree(incomplete, ignore_errors=True)
            incomplete.mkdir(parents=True)
        if sharded:
            torch.distributed.barrier()
            writer = dcp.HuggingFaceStorageWriter(str(incomplete), save_distributed=True)
            dcp.save(_flat(parts), storage_writer=writer)
        else:
            for part, tensors in parts.items():
                if tensors:
                    tensors = {key: value.contiguous() for key, value in tensors.items()}
                    save_file(tensors, incomplete / f"{part}.safetensors", metadata={"format": "pt"})
        if is_main:
            if sharded:
                state = {**state, "shards": sorted(path.name for path in incomplete.iterdir())}
            (incomplete / "state.json").write_text(json.dumps(state))
            _put_in_place(incomplete, final)
    except (OSError, SafetensorError, CheckpointException) as error:
        if is_main:
            shutil.rmtree(incomplete, ignore_errors=True)
        # Every process gets the errors of all, with their tracebacks.
        reason = next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error
        newest = latest_checkpoint(folder)
        kept = f"The last checkpoint, {newest}, is intact" if newest else "No checkpoint had been written yet"
        raise RunError(
            f"output_dir={str(folder.parent)!r}: the checkpoint at {state['images_seen']:,} images could not be "
            f"written ({reason}). {kept}. Make room or give a writable folder, then run the same command to resume."
        ) from error
    if is_main:
        for old in complete_checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    return final


def read_shards(path: Path, parts: Parts) -> None:
    """Read a sharded checkpoint into tensors in place. Every process calls it, and reads what its shards need."""
    dcp.load(_flat(parts), storage_reader=dcp.HuggingFaceStorageReader(str(path)))


def complete_checkpoints(folder: Path) -> list[Path]:
    """List the complete checkpoints of a `checkpoints/` folder, oldest first."""
    return sorted(folder.glob("images-*"))


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint of a `checkpoints/` folder."""
    complete = complete_checkpoints(folder)
    return complete[-1] if complete else None


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a complete checkpoint without checking its files."""
    return Checkpoint(path, json.loads((path / "state.json").read_text()))


def exported_weights(path: Path, raw: bool = False) -> dict[str, torch.Tensor]:
    """Read the weights and buffers of a checkpoint by name, averaged where the run averages them, unless `raw`."""
    checkpoint = open_checkpoint(path)
    weights = checkpoint.read("model")
    return weights if raw else {**weights, **checkpoint.read("ema")}


def load_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint, and check that its files are complete.

    Raises:
        RunError: If a file is missing or damaged, or a weight is not a finite number.
    """
    try:
        checkpoint = open_checkpoint(path)
        state = checkpoint.state
        expected = {"model": True, "optimizer": state["images_seen"] > 0, "ema": state.get("ema_steps", 0) > 0}
        whole = [f"{part}.safetensors" for part, needed in expected.items() if needed]
        for file in state.get("shards", whole):
            with safe_open(path / file, "pt") as tensors:
                for name in tensors.offset_keys():
                    if file != "model.safetensors" and not name.startswith("model/"):
                        continue
                    tensor = tensors.get_tensor(name)
                    if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                        raise ValueError(f"{name} has values that are not finite numbers")
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged ({str(error).partition(chr(10))[0]})") from error
    return checkpoint


def load_newest(folder: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """Open the newest sound checkpoint of a `checkpoints/` folder; `None` if nothing was saved there.

    Damaged ones that are newer are renamed, so that they count no more, and `say` prints a line about each.

    Raises:
        RunError: If every checkpoint is damaged; all are then left in place.
    """
    damaged: list[tuple[Path, RunError]] = []
    for path in reversed(complete_checkpoints(folder)):
        try:
            checkpoint = load_checkpoint(path)
        except RunError as error:
            damaged.append((path, error))
            continue
        for bad, reason in damaged:
            say(f"{reason}; resuming from the checkpoint before it.")
            shutil.rmtree(aside := bad.with_name(f"{DAMAGED_PREFIX}{bad.name}"), ignore_errors=True)
            os.replace(bad, aside)
        return checkpoint
    if damaged:
        raise RunError(
            f"{damaged[0][1]}, and no other checkpoint in {folder} can be read. Restore one from a copy, or give "
            "another output_dir to start again."
        )
    return None


def _flat(parts: Parts) -> dict[str, Any]:
    """Return the tensors of all parts by `part/name`."""
    return {f"{part}/{name}": tensor for part, tensors in parts.items() for name, tensor in tensors.items()}


def _read_from_shards(path: Path, part: str, prefix: str) -> dict[str, torch.Tensor]:
    reader = dcp.HuggingFaceStorageReader(str(path))
    stored: dict[str, Any] = reader.read_metadata().state_dict_metadata
    chosen = {key: saved for key, saved in stored.items() if key.startswith(f"{part}/{prefix}")}
    whole = {key: torch.empty(saved.size, dtype=saved.properties.dtype) for key, saved in chosen.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # this process reads alone
        dcp.load(whole, storage_reader=reader, no_dist=True)
    return {key.removeprefix(f"{part}/"): tensor for key, tensor in whole.items()}


def _put_in_place(incomplete: Path, final: Path) -> None:
    open_permissions(incomplete)
    for path in (*incomplete.iterdir(), incomplete):
        _flush(path)
    if final.exists():  # an interrupted run saved the same images again
        shutil.rmtree(final)
    os.replace(incomplete, final)
    _flush(final.parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
