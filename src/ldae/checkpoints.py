"""Open checkpoints: what can be wrong with a folder, a Hub id or its weights is refused here, in one line."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoImageProcessor, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    cached_file,
    logging,
)

import ldae  # noqa: F401 - registers the models with transformers


def open_config(checkpoint: str | os.PathLike[str], option: str = "checkpoint", **fields: Any) -> PreTrainedConfig:
    """Read a checkpoint's configuration.

    Args:
        checkpoint: Folder or Hub id.
        option: Name of the option that it was given by, for messages.
        fields: Fields of the configuration to change.

    Raises:
        ValueError: If there is no such folder or repository, or no valid config.json in it.
    """
    refuse_missing_folder(checkpoint, option)
    try:
        return AutoConfig.from_pretrained(os.fspath(checkpoint), **fields)
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"{option}={os.fspath(checkpoint)!r} cannot be loaded: {_first_line(error)}") from error


def open_model(kind: Any, checkpoint: str | os.PathLike[str], option: str = "checkpoint", **fields: Any) -> Any:
    """Load a checkpoint's model and check its weights.

    Args:
        kind: Class with a `from_pretrained`, such as `AutoModel`.
        checkpoint: Folder or Hub id.
        option: Name of the option that it was given by, for messages.
        fields: Arguments of `from_pretrained`.

    Returns:
        What `from_pretrained` returns; with `output_loading_info=True` a model and a dictionary.

    Raises:
        ValueError: If it cannot be loaded (missing, truncated, of other shapes than its config.json says), or a weight
            is not a finite number.
    """
    refuse_missing_folder(checkpoint, option)
    try:
        loaded = kind.from_pretrained(os.fspath(checkpoint), **fields)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ValueError(f"{option}={os.fspath(checkpoint)!r} cannot be loaded: {_first_line(error)}") from error
    refuse_non_finite(loaded[0] if isinstance(loaded, tuple) else loaded, f"{option}={os.fspath(checkpoint)!r}")
    return loaded


def refuse_non_finite(model: PreTrainedModel | torch.nn.Module, where: str) -> None:
    """Refuse a model with weights that are not finite numbers.

    Args:
        model: The model.
        where: Where it comes from, for the message.

    Raises:
        ValueError: Naming the first such weight.
    """
    for name, weight in model.state_dict().items():
        if weight.is_floating_point() and not bool(torch.isfinite(weight).all()):
            count = int((~torch.isfinite(weight)).sum())
            raise ValueError(
                f"{where} has {count} values in {name} that are not finite numbers: the run diverged or the file is "
                "damaged. Give an earlier checkpoint."
            )


def refuse_missing_folder(checkpoint: str | os.PathLike[str], option: str = "checkpoint") -> None:
    """Refuse a local path that does not exist, which would otherwise be looked for on the Hub.

    Raises:
        ValueError: If the name is a path by its form, or begins with an existing folder, and there is no such folder.
    """
    name = os.fspath(checkpoint)
    if is_local(name) and not Path(name).expanduser().exists():
        raise ValueError(f"{option}={name!r} does not exist; give a run's folder or a Hub id such as namespace/name.")


def is_local(name: str) -> bool:
    """Return true if a name is a local path and not a Hub id.

    Example:
        >>> is_local("./run"), is_local("/data/run"), is_local("namespace/name"), is_local("a/b/c")
        (True, True, False, True)
    """
    parts = Path(name).parts
    return name.startswith((".", "~", os.sep)) or len(parts) > 2 or (len(parts) == 2 and Path(parts[0]).is_dir())


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0].rstrip(":. ") + "."


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
    try:
        with quietly():  # about a head that is not used; what is missing is looked at below
            loaded: Any = AutoModel.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
        processor = AutoImageProcessor.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{field}={name!r} cannot be loaded: {error} Give the Hub id of an image model, such as "
            "microsoft/resnet-50, or a folder with config.json, model.safetensors and preprocessor_config.json."
        ) from error
    model, report = loaded
    missing = sorted(report["missing_keys"])
    pooler = [key for key in missing if "pool" in key]
    if len(missing) > len(pooler):
        raise ValueError(
            f"{field}={name!r} lacks {len(missing)} weights, such as {missing[0]}: its features would be random. "
            "Give a checkpoint of the whole network."
        )
    refuse_non_finite(model, f"{field}={name!r}")
    return model.requires_grad_(False).eval(), processor, not pooler


def hash_weights(checkpoint: str | os.PathLike[str], option: str = "checkpoint") -> str:
    """Hash a checkpoint's files of weights, which tell one checkpoint from another whatever its config.json chooses.

    Args:
        checkpoint: Folder or Hub id.
        option: Name of the option that it was given by, for messages.

    Raises:
        ValueError: If there are no weights.
    """
    name = os.fspath(checkpoint)
    refuse_missing_folder(name, option)

    def find(file: str) -> str | None:
        return cached_file(name, file, _raise_exceptions_for_missing_entries=False)

    whole = find(SAFE_WEIGHTS_NAME) or find(WEIGHTS_NAME)
    index = None if whole else find(SAFE_WEIGHTS_INDEX_NAME) or find(WEIGHTS_INDEX_NAME)
    if whole is None and index is None:
        raise ValueError(f"{option}={name!r} has no file of weights, such as {SAFE_WEIGHTS_NAME}.")
    parts = [whole] if index is None else [find(part) for part in sorted(set(_weight_map(index).values()))]
    digest = hashlib.sha256()
    for part in parts:
        with open(str(part), "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _weight_map(index: str) -> dict[str, str]:
    return json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]


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
