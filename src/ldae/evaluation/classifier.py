"""A trained probe as an image classifier that transformers loads: encoder re-cut, BatchNorm folded, classes named."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoModelForImageClassification, PreTrainedModel

import ldae  # noqa: F401 - registers the models with transformers
from ldae.checkpoints import open_config, open_model
from ldae.data.image_processor import save_image_processor
from ldae.files import open_permissions

from .encoder import Layer


def open_as_classifier(
    checkpoint: str | os.PathLike[str], layer: Layer, class_names: Sequence[str], **fields: Any
) -> PreTrainedModel:
    """Load a checkpoint's encoder, cut after a block, under a new linear classifier of its pooled features.

    Args:
        checkpoint (`str` or `os.PathLike`): Folder or Hub id of a pre-trained l-DAE or of a DDAE.
        layer (`int` or `str`): Block of an l-DAE, counted from 1, or tap of a DDAE; it becomes the encoder's last.
        class_names (`Sequence[str]`): Names of the classes.
        **fields: Other fields of the configuration.

    Returns:
        [`LDAEForImageClassification`] or [`DDAEForImageClassification`], whose classifier is untrained.

    Raises:
        ValueError: If the checkpoint cannot be loaded, or does not reach as far as the block.
    """
    names: dict[str, Any] = {
        "id2label": dict(enumerate(class_names)),
        "label2id": {name: i for i, name in enumerate(class_names)},
    }
    config = open_config(checkpoint, **open_config(checkpoint).cut_fields(layer), **names, **fields)
    if hasattr(config, "auto_map"):
        del config.auto_map  # names the checkpoint's copy of the code, which the classifier's folder does not hold
    encoder = open_model(AutoModel, checkpoint, config=config)
    model = AutoModelForImageClassification.from_config(encoder.config)
    setattr(model, model.base_model_prefix, encoder)
    return model


def build_classifier(
    checkpoint: str | os.PathLike[str],
    weight: torch.Tensor,
    bias: torch.Tensor,
    *,
    layer: Layer,
    timestep: int,
    class_names: Sequence[str],
) -> PreTrainedModel:
    """Join an encoder, cut after the block that was probed, and a linear layer of its pooled features.

    Args:
        checkpoint (`str` or `os.PathLike`): Folder or Hub id of a pre-trained l-DAE or of a DDAE.
        weight (`torch.Tensor` of shape `(K, C)`): Weights for raw pooled features, as
            [`~ldae.evaluation.linear_probe.LinearProbes.folded`] gives them. C may be larger than the width of a
            DDAE's tap that was probed together with wider ones; its own weights are kept.
        bias (`torch.Tensor` of shape `(K,)`): Biases.
        layer (`int` or `str`): Block of an l-DAE, counted from 1, or tap of a DDAE that was probed; it becomes the
            encoder's last.
        timestep (`int`): Time step of the features; it becomes `feature_timestep`.
        class_names (`Sequence[str]`): Names of the K classes.

    Returns:
        [`LDAEForImageClassification`] or [`DDAEForImageClassification`] in evaluation mode; its logits are the
        probe's, of a clean input.

    Raises:
        ValueError: If the shapes do not fit, or the checkpoint does not reach as far as the block.
    """
    model: Any = open_as_classifier(checkpoint, layer, class_names, feature_timestep=timestep).eval()
    expected = tuple(model.classifier.weight.shape)  # (K, C)
    width = expected[1]
    if tuple(weight[:, :width].shape) != expected or tuple(bias.shape) != expected[:1]:
        raise ValueError(
            f"weight {tuple(weight.shape)} and bias {tuple(bias.shape)} do not fit {expected[0]} classes and "
            f"hidden_size={width}; a probe of this checkpoint has weight {expected}."
        )
    with torch.no_grad():
        model.classifier.weight.copy_(weight[:, :width])
        model.classifier.bias.copy_(bias)
    model.classifier.to(next(model.base_model.parameters()).dtype)
    return model


def save_classifier(model: Any, folder: str | os.PathLike[str]) -> None:
    """Write a classifier and its image processor to a folder, for `AutoModelForImageClassification` and pipelines."""
    model.save_pretrained(folder)
    save_image_processor(folder, model.config)
    open_permissions(Path(folder) / "model.safetensors")
