"""Other people's networks by name: frozen backbones for perceptual losses and for the scores of samples."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoImageProcessor, AutoModel
from transformers.utils import logging


def load_backbone(source: str | os.PathLike[str], field: str) -> tuple[Any, Any, bool]:
    """A frozen network in float32 and its image processor.

    Args:
        source (`str` or path): Folder or Hub id of a checkpoint that `AutoModel` and `AutoImageProcessor` load.
        field (`str`): The field that names it, for errors.

    Returns:
        The network in evaluation mode, its image processor, and whether the checkpoint holds the network's pooling
        layer, which many classifiers' do not.

    Raises:
        ValueError: If it cannot be loaded, or has other weights missing, which would be drawn at random.
    """
    name = os.fspath(source)
    try:
        with quietly():  # about a head that is not used; what is missing is looked at below
            loaded: Any = AutoModel.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
        processor = AutoImageProcessor.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{field}={name!r} cannot be loaded: {error} Give the Hub id of an image model, such as "
            "microsoft/resnet-50, or "
            "a folder with config.json, model.safetensors and preprocessor_config.json."
        ) from error
    model, report = loaded
    missing = sorted(report["missing_keys"])
    pooler = [key for key in missing if "pool" in key]
    if len(missing) > len(pooler):
        raise ValueError(
            f"{field}={name!r} lacks {len(missing)} weights, such as {missing[0]}: its features would be drawn at "
            "random. "
            "Give a checkpoint of the whole network."
        )
    return model.requires_grad_(False).eval(), processor, not pooler


@contextmanager
def quietly() -> Iterator[None]:
    """Without transformers' reports about what a checkpoint lacks or has beside."""
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)
