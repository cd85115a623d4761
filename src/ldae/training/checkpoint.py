"""Checkpoints of a run: written atomically, without pickles, and rotated."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from ldae.errors import RunError
from ldae.files import open_permissions


INCOMPLETE_PREFIX = ".incomplete-"  # of a checkpoint that is being written
DAMAGED_PREFIX = "damaged-"  # of a checkpoint that could not be read when a run resumed
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


@dataclass
class Checkpoint:
    """Everything that a run resumes from.

    Args:
        model (`dict[str, torch.Tensor]`): Weights and persistent buffers by name.
        optimizer (`dict[str, torch.Tensor]`): AdamW's state by `weight name/state name`; empty before the first step.
        ema (`dict[str, torch.Tensor]`): Averaged weights by name; empty where there is no average.
        state (`dict[str, Any]`): Values that JSON can hold: images seen, each process's position in the data, ...
    """

    model: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    ema: dict[str, torch.Tensor]
    state: dict[str, Any]

    @property
    def images_seen(self) -> int:
        """Images seen when it was written."""
        return self.state["images_seen"]


def collect_model(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return whole weights and persistent buffers on the CPU, under DDP and FSDP2 alike.

    Every process must call it; the result is complete in the main process only. Of a model on the CPU the tensors are
    the model's own: save them before the next step.
    """
    state: dict[str, Any] = get_model_state_dict(model, options=_WHOLE)
    return state


def collect_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Return the optimizer's state by `weight name/state name`; otherwise like [`collect_model`]."""
    state: dict[str, Any] = get_optimizer_state_dict(model, optimizer, options=_WHOLE)
    return {
        f"{weight}/{name}": value
        for weight, values in state.get("state", {}).items()
        for name, value in values.items()
    }


def restore(checkpoint: Checkpoint, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Load weights and optimizer state. Every process must call it."""
    whole = StateDictOptions(full_state_dict=True)
    set_model_state_dict(model, dict(checkpoint.model), options=whole)
    if checkpoint.optimizer:
        layout = get_optimizer_state_dict(model, optimizer)  # for its parameter groups
        state: dict[str, Any] = {}
        for key, value in checkpoint.optimizer.items():
            weight, name = key.rsplit("/", 1)
            state.setdefault(weight, {})[name] = value
        set_optimizer_state_dict(model, optimizer, {**layout, "state": state}, options=whole)


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Write a checkpoint, rename it into place, and remove all but the newest `keep`.

    Raises:
        RunError: If it cannot be written. Older checkpoints are kept.
    """
    name = f"images-{checkpoint.images_seen:012d}"
    incomplete, final = folder / f"{INCOMPLETE_PREFIX}{name}", folder / name
    try:
        shutil.rmtree(incomplete, ignore_errors=True)
        incomplete.mkdir(parents=True)
        for part in ("model", "optimizer", "ema"):
            tensors = getattr(checkpoint, part)
            if tensors:
                tensors = {key: value.contiguous() for key, value in tensors.items()}
                save_file(tensors, incomplete / f"{part}.safetensors", metadata={"format": "pt"})
        (incomplete / "state.json").write_text(json.dumps(checkpoint.state))
        open_permissions(incomplete)
        for path in (*incomplete.iterdir(), incomplete):
            _flush(path)
        if final.exists():  # an interrupted run saved the same images again
            shutil.rmtree(final)
        os.replace(incomplete, final)
        _flush(folder)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(incomplete, ignore_errors=True)
        newest = latest_checkpoint(folder)
        kept = f"The last checkpoint, {newest}, is intact" if newest else "No checkpoint had been written yet"
        raise RunError(
            f"output_dir={str(folder.parent)!r}: the checkpoint at {checkpoint.images_seen:,} images could not be "
            f"written ({error}). {kept}. Make room or give a writable folder, then run the same command to resume."
        ) from error
    for old in complete_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def complete_checkpoints(folder: Path) -> list[Path]:
    """List the complete checkpoints of a `checkpoints/` folder, oldest first."""
    return sorted(folder.glob("images-*"))


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the newest complete checkpoint of a `checkpoints/` folder."""
    complete = complete_checkpoints(folder)
    return complete[-1] if complete else None


def exported_weights(path: Path, raw: bool = False) -> dict[str, torch.Tensor]:
    """Read the weights and buffers of a checkpoint by name, averaged where the run averages them, unless `raw`."""
    weights, average = load_file(path / "model.safetensors"), path / "ema.safetensors"
    return weights if raw or not average.exists() else {**weights, **load_file(average)}


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint onto the CPU.

    Raises:
        RunError: If a file is missing or damaged, or a weight is not a finite number.
    """
    try:
        state = json.loads((path / "state.json").read_text())
        expected = {"model": True, "optimizer": state["images_seen"] > 0, "ema": state.get("ema_steps", 0) > 0}
        parts = {part: path / f"{part}.safetensors" for part in expected}
        tensors = {part: load_file(file) if expected[part] or file.exists() else {} for part, file in parts.items()}
        for name, tensor in tensors["model"].items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise ValueError(f"{name} has values that are not finite numbers")
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged ({str(error).partition(chr(10))[0]})") from error
    return Checkpoint(**tensors, state=state)


def load_newest(folder: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """Read the newest sound checkpoint of a `checkpoints/` folder, and set damaged ones that are newer aside.

    Args:
        folder (`Path`): The folder. The damaged checkpoints in it are renamed, so that they count no more.
        say (`Callable[[str], None]`): Prints a line about each.

    Returns:
        [`Checkpoint`], or `None` if nothing was saved there.

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


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
