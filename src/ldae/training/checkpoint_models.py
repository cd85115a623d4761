"""The checkpoints of a run, opened as models."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import AutoModelForPreTraining

import ldae  # noqa: F401 - registers the models with transformers
from ldae.checkpoints import loading, open_config, refuse_non_finite
from ldae.training.checkpoint import complete_checkpoints, exported_weights
from ldae.training.run_folder import RunFolder


def checkpoint_models(folder: str | os.PathLike[str], *, raw: bool = False) -> Iterator[tuple[int, Any]]:
    """Open the checkpoints of a pre-training run as models, oldest first, one at a time.

    The last one of a finished run is the model in its folder. All are configured by the folder's config.json, with the
    block and time step that a grid search chose.

    Args:
        folder (`str` or path): The run's folder, with config.json and `checkpoints/`.
        raw (`bool`, defaults to `False`): Whether to read the trained weights even if the run averages them.

    Returns:
        `Iterator[tuple[int, PreTrainedModel]]`: Images seen, and an [`LDAEForPreTraining`] or [`DDAEForPreTraining`]
        on the CPU in evaluation mode.

    Raises:
        ValueError: If the folder holds no run or no checkpoints.
    """
    run = RunFolder(folder)
    checkpoints = complete_checkpoints(run.checkpoints)
    if not checkpoints:
        raise ValueError(
            f"checkpoint={str(folder)!r} holds no checkpoints/images-*; give the folder of a pre-training run "
            "on this machine, one made with --keep_checkpoints 10 for ten of them."
        )
    config_file = run.path / "config.json"
    if not config_file.is_file():
        raise ValueError(
            f"checkpoint={str(folder)!r} has no {config_file.name}; start its run again, which writes it."
        )
    return _open(checkpoints, open_config(run.path), raw)


def _open(checkpoints: list[Path], config: Any, raw: bool) -> Iterator[tuple[int, Any]]:
    for path in checkpoints:
        model = AutoModelForPreTraining.from_config(config)
        with loading(path):
            model.load_state_dict(exported_weights(path, raw))
        refuse_non_finite(model, f"checkpoint={str(path)!r}")
        yield int(path.name.removeprefix("images-")), model.eval()
