"""Open the encoder of a checkpoint of any kind."""

import os
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModel

from ldae.checkpoints import load_backbone, open_config, open_model

from .encoder import DenoiserEncoder, Encoder, PooledEncoder


def open_encoder(
    checkpoint: str | os.PathLike[str],
    device: torch.device | str | None = None,
    *,
    layers: Sequence[Any] | None = None,
    every: bool = False,
) -> Encoder:
    """Load an encoder in evaluation mode.

    Args:
        checkpoint (`str` or path): Folder or Hub id of an l-DAE or a DDAE, or of any vision model of `AutoModel`,
            which needs its image processor beside it.
        device (`torch.device` or `str`, *optional*): Where to; by default a GPU where there is one, else the CPU.
        layers (`Sequence`, *optional*): Layers that it must reach; an l-DAE is cut after the deepest of them.
        every (`bool`, defaults to `False`): Whether it must reach all layers of the checkpoint, the decoder's too.

    Raises:
        ValueError: If it cannot be loaded, or has weights missing.
    """
    name = os.fspath(checkpoint)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    config = open_config(name)
    if not hasattr(config, "reach_fields"):
        if layers or every:
            raise ValueError(f"layers are choices of l-DAE and DDAE models; this is a {config.model_type}.")
        return PooledEncoder(*load_backbone(name, "checkpoint")).to(device)
    fields = config.reach_fields(layers) if layers or every else {}
    try:
        model = open_model(AutoModel, name, **fields)
    except ValueError:
        if not fields:
            raise
        model = open_model(AutoModel, name)  # a checkpoint that was cut reaches as far as its own layer
    encoder = DenoiserEncoder(model.to(device).eval())
    encoder.config = config  # the checkpoint's own, whose depth decides the paper's point
    return encoder


def open_at(
    checkpoint: str,
    layers: Sequence[Any] | None = None,
    timesteps: Sequence[int] | None = None,
    *,
    every: bool = False,
    noisy: bool = False,
) -> tuple[Encoder, tuple[Any, ...] | None, tuple[int, ...] | None]:
    """Load an encoder that reaches the given layers.

    Returns:
        `(encoder, layers, timesteps)`, filled in; both are `None` if the encoder has no choice of them.

    Raises:
        ValueError: If the checkpoint cannot be loaded, or a layer or time step does not exist.
    """
    if layers and every:
        raise ValueError(f"layers={','.join(map(str, layers))} and block_sweep are both given; give one of them.")
    encoder = open_encoder(checkpoint, "cpu", layers=layers, every=every)
    if every and encoder.has_choices:
        layers = encoder.search_layers
    chosen = encoder.choices(layers or None, timesteps or None, noisy or every)
    if not encoder.has_choices:
        return encoder, None, None
    return encoder, tuple(chosen[0]), tuple(chosen[1])
