"""A trained probe as an image classifier that transformers loads: encoder re-cut, BatchNorm folded, classes named."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import ldae  # noqa: F401 - registers the models with transformers
from ldae.data.image_processor import save_image_processor
from ldae.files import open_permissions
from ldae.models.configuration_ddae import DDAEConfig
from ldae.models.configuration_ldae import LDAEConfig
from ldae.models.modeling_ddae import DDAEForImageClassification, DDAEModel
from ldae.models.modeling_ldae import LDAEForImageClassification, LDAEModel

from .encoder import Layer


def build_classifier(
    checkpoint: str | os.PathLike[str],
    weight: torch.Tensor,
    bias: torch.Tensor,
    *,
    layer: Layer,
    timestep: int,
    class_names: Sequence[str],
) -> LDAEForImageClassification | DDAEForImageClassification:
    """Join an encoder, cut after the block that was probed, and a linear layer of its pooled features.

    Args:
        checkpoint (`str` or `os.PathLike`): Folder or Hub id of a pre-trained l-DAE or of a DDAE.
        weight (`torch.Tensor` of shape `(K, C)`): Of raw pooled features: see
            [`~ldae.evaluation.linear_probe.LinearProbes.folded`]. Of a DDAE's tap C may be larger than its width: taps
            that were probed together with wider ones had their features filled up with zeros, and only the weights of
            the tap's own are kept.
        bias (`torch.Tensor` of shape `(K,)`).
        layer (`int` or `str`): Block that was probed, of an l-DAE counted from 1, of a DDAE by its name; it becomes
            the encoder's last.
        timestep (`int`): Time step of the features; it becomes `feature_timestep`.
        class_names (`Sequence[str]`): Names of the K classes.

    Returns:
        [`LDAEForImageClassification`] or [`DDAEForImageClassification`] in evaluation mode; its logits are the
        probe's, of a clean input.

    Raises:
        ValueError: If the shapes do not fit, or the checkpoint does not reach as far as the tap.
    """
    fields: dict[str, Any] = {
        "feature_timestep": timestep,
        "id2label": dict(enumerate(class_names)),
        "label2id": {name: index for index, name in enumerate(class_names)},
    }
    config: Any
    if isinstance(layer, int):
        config = LDAEConfig.from_pretrained(checkpoint, num_hidden_layers=layer, feature_layer=None, **fields)
    else:
        config = DDAEConfig.from_pretrained(checkpoint, feature_layer=layer, **fields)
    if hasattr(config, "auto_map"):
        del config.auto_map  # names the checkpoint's copy of the code, which the classifier's folder does not hold
    model: Any
    if isinstance(layer, int):
        _check_shapes(weight, bias, len(class_names), config.hidden_size)
        encoder: Any = LDAEModel.from_pretrained(checkpoint, config=config)
        model = LDAEForImageClassification(config).eval()
        model.ldae = encoder
    else:
        encoder = DDAEModel.from_pretrained(checkpoint, config=config)
        model = DDAEForImageClassification(encoder.config).eval()
        model.ddae = encoder
        width = model.config.hidden_size
        _check_shapes(weight[:, :width], bias, len(class_names), width)
        weight = weight[:, :width]
    with torch.no_grad():
        model.classifier.weight.copy_(weight)
        model.classifier.bias.copy_(bias)
    model.classifier.to(next(encoder.parameters()).dtype)
    return model


def save_classifier(
    model: LDAEForImageClassification | DDAEForImageClassification, folder: str | os.PathLike[str]
) -> None:
    """Write a classifier and its image processor to a folder, for `AutoModelForImageClassification` and pipelines."""
    model.save_pretrained(folder)
    save_image_processor(folder, model.config)
    open_permissions(Path(folder) / "model.safetensors")


def _check_shapes(weight: torch.Tensor, bias: torch.Tensor, num_classes: int, width: int) -> None:
    expected = (num_classes, width)
    if tuple(weight.shape) != expected or tuple(bias.shape) != expected[:1]:
        raise ValueError(
            f"weight {tuple(weight.shape)} and bias {tuple(bias.shape)} do not fit {num_classes} classes and "
            f"hidden_size={width}; a probe of this checkpoint has weight {expected}."
        )
