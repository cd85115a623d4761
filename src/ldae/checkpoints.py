"""Open checkpoints: what can be wrong with a folder, a Hub id or its weights is refused here, in one line."""

import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

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
                "damaged. "
                "Give an earlier checkpoint."
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
