"""Open checkpoints: what can be wrong with a folder, a Hub id or its weights is refused here, in one line."""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModel, PreTrainedConfig
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    cached_file,
    logging,
)

import ldae  # noqa: F401 - registers the models with transformers
from ldae.errors import one_line
from ldae.files import hash_tensors
from ldae.places import check_place, near_path


OTHER_SHAPES = "its weights have other shapes than its config.json says"
_REMEDY = re.compile(r"\b([Gg]ive|choose|make it) ")  # in the messages of our own models


def open_config(checkpoint: str | os.PathLike[str], option: str = "checkpoint", **fields: Any) -> PreTrainedConfig:
    """Read a checkpoint's configuration.

    Args:
        checkpoint: Folder or Hub id.
        option: Name of the option that it was given by, for messages.
        fields: Fields of the configuration to change.

    Raises:
        ValueError: If there is no such folder or repository, or no valid config.json in it.
    """
    with loading(checkpoint, option):
        return AutoConfig.from_pretrained(os.fspath(checkpoint), **fields)


def open_model(
    kind: Any, checkpoint: str | os.PathLike[str], option: str = "checkpoint", new: str | None = None, **fields: Any
) -> Any:
    """Load a checkpoint's model and check its weights.

    Args:
        kind: Class with a `from_pretrained`, such as `AutoModel`.
        checkpoint: Folder or Hub id.
        option: Name of the option that it was given by, for messages.
        new: Prefix of weights that the checkpoint need not have, such as those of a new head.
        fields: Arguments of `from_pretrained`.

    Returns:
        The model.

    Raises:
        ValueError: If it cannot be loaded (missing, truncated, of other shapes than its config.json says), lacks a
            weight, or has one that is not a finite number.
    """
    with loading(checkpoint, option):
        model, report = kind.from_pretrained(os.fspath(checkpoint), output_loading_info=True, **fields)
        if any(new is None or not name.startswith(new) for name, *_ in report["mismatched_keys"]):
            raise ValueError(OTHER_SHAPES)
    missing = [name for name in report["missing_keys"] if new is None or not name.startswith(new)]
    _refuse_missing(missing, f"{option}={os.fspath(checkpoint)!r}")
    refuse_non_finite(model, f"{option}={os.fspath(checkpoint)!r}")
    return model


def _refuse_missing(missing: Iterable[str], where: str) -> None:
    """Refuse a checkpoint that lacks weights, which transformers would draw at random."""
    if names := sorted(missing):
        raise ValueError(
            f"{where} lacks {len(names)} weights, such as {names[0]}, which would be random. Give a checkpoint of the "
            "whole network, or of fewer blocks by num_hidden_layers."
        )


@contextmanager
def loading(checkpoint: str | os.PathLike[str], option: str = "checkpoint") -> Iterator[None]:
    """Refuse a checkpoint that does not exist, or that the block cannot load, in one line.

    A damaged file makes the libraries raise almost anything, so every error of the block is a refusal.

    Args:
        checkpoint: Folder or Hub id.
        option: Name of the option that it was given by, for messages.

    Raises:
        ValueError: If the checkpoint does not exist, or for any error of the block.
    """
    check_place(checkpoint, option)
    try:
        with quietly():  # about weights that are missing or of another shape: they are refused in one line
            yield
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        text = one_line(" ".join(lines[:2]) if lines[0].endswith(":") else lines[0]).rstrip(":. ")
        if "ignore_mismatched_sizes" in text:
            text = OTHER_SHAPES
        name = os.fspath(checkpoint)
        remedy = "" if _REMEDY.search(text) else ". Give another checkpoint, or restore this one's files."
        if not os.path.exists(os.path.expanduser(name)):
            remedy = near_path(name) or ". Give a run's folder or a Hub id such as namespace/name."
        raise ValueError(f"{option}={name!r} cannot be loaded: {text}{remedy or '.'}") from error


def refuse_non_finite(model: torch.nn.Module, where: str) -> None:
    """Raise a `ValueError` if a model from `where` has weights that are not finite numbers."""
    for name, weight in model.state_dict().items():
        if weight.is_floating_point() and not bool(torch.isfinite(weight).all()):
            count = int((~torch.isfinite(weight)).sum())
            raise ValueError(
                f"{where} has {count} values in {name} that are not finite numbers: the run diverged or the file is "
                "damaged. Give an earlier checkpoint."
            )


def load_backbone(source: str | os.PathLike[str], field: str) -> tuple[Any, Any, bool]:
    """Load a frozen network in float32 and its image processor.

    Args:
        source (`str` or path): Folder or Hub id of a checkpoint that `AutoModel` and `AutoImageProcessor` load.
        field (`str`): The field that names it, for errors.

    Returns:
        The network in evaluation mode, its image processor, and whether the checkpoint holds the network's pooling
        layer, which many classifiers' do not.

    Raises:
        ValueError: If it cannot be loaded, has other weights missing, which would be drawn at random, or has weights
            that are not finite numbers.
    """
    name = os.fspath(source)
    with loading(name, field):
        loaded: Any = AutoModel.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
        processor = AutoImageProcessor.from_pretrained(name)
    model, report = loaded
    pooler = [key for key in report["missing_keys"] if "pool" in key]
    _refuse_missing(set(report["missing_keys"]) - set(pooler), f"{field}={name!r}")
    refuse_non_finite(model, f"{field}={name!r}")
    return model.requires_grad_(False).eval(), processor, not pooler


def hash_model(model: torch.nn.Module) -> str:
    """Hash everything that a model's features depend on: its configuration and its weights."""
    config: Any = model.config
    fields = {name: value for name, value in config.to_dict().items() if not name.startswith(("_", "transformers"))}
    return hash_tensors(fields, model.state_dict())


def hash_weights(checkpoint: str | os.PathLike[str]) -> str:
    """Hash a checkpoint's files of weights, which tell one checkpoint from another whatever its config.json chooses.

    Args:
        checkpoint: Folder or Hub id.

    Raises:
        ValueError: If there are no weights, or a part of them is missing.
    """
    name = os.fspath(checkpoint)

    def find(file: str) -> str | None:
        return cached_file(name, file, _raise_exceptions_for_missing_entries=False)

    digest = hashlib.sha256()
    with loading(name):
        whole = find(SAFE_WEIGHTS_NAME) or find(WEIGHTS_NAME)
        index = None if whole else find(SAFE_WEIGHTS_INDEX_NAME) or find(WEIGHTS_INDEX_NAME)
        files = {SAFE_WEIGHTS_NAME: whole}
        if index is not None:
            weight_map = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
            files = {part: find(part) for part in sorted(set(weight_map.values()))}
        for missing in [part for part, path in files.items() if path is None]:
            raise ValueError(f"it has no {missing}")
        for path in files.values():
            with open(str(path), "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


@contextmanager
def quietly() -> Iterator[None]:
    """Silence transformers' reports of missing and unexpected weights."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def image_side(config: Any, processor: Any) -> int:
    """Find the side of a model's images in pixels, in its configuration or else in its image processor.

    Raises:
        ValueError: If neither has it.
    """
    for size in (
        getattr(config, "image_size", None),
        getattr(processor, "crop_size", None) if getattr(processor, "do_center_crop", False) else None,
        getattr(processor, "size", None),
    ):
        if size is None:
            continue
        if isinstance(size, int):
            return size
        sides = list(size) if isinstance(size, list | tuple) else [v for _, v in dict(size).items() if v is not None]
        if sides and all(side == sides[0] for side in sides):
            return int(sides[0])
    raise ValueError(f"the image processor of this {config.model_type} has no image size; give one with a size.")
