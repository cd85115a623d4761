"""A trained probe as an image classifier that transformers loads: encoder re-cut, BatchNorm folded, classes named."""

import os
from collections.abc import Sequence

import torch

from ldae.data.image_processor import save_image_processor
from ldae.models.configuration_ldae import LDAEConfig
from ldae.models.modeling_ldae import LDAEForImageClassification, LDAEModel


def build_classifier(
    checkpoint: str | os.PathLike[str],
    weight: torch.Tensor,
    bias: torch.Tensor,
    *,
    layer: int,
    timestep: int,
    class_names: Sequence[str],
) -> LDAEForImageClassification:
    """
    Join an encoder, cut after the block that was probed, and a linear layer of its pooled features.

    Args:
        checkpoint (`str` or `os.PathLike`): Folder or Hub id of a pre-trained model.
        weight (`torch.Tensor` of shape `(K, C)`): Of raw pooled features: see
            [`~ldae.evaluation.linear_probe.LinearProbes.folded`].
        bias (`torch.Tensor` of shape `(K,)`).
        layer (`int`): Block that was probed, counted from 1; it becomes the encoder's last.
        timestep (`int`): Time step of the features; it becomes `feature_timestep`.
        class_names (`Sequence[str]`): Names of the K classes.

    Returns:
        [`LDAEForImageClassification`] in evaluation mode; its logits are the probe's, of a clean input.

    Raises:
        ValueError: where the shapes do not fit.
    """
    config = LDAEConfig.from_pretrained(
        checkpoint,
        num_hidden_layers=layer,
        feature_layer=None,
        feature_timestep=timestep,
        id2label=dict(enumerate(class_names)),
        label2id={name: index for index, name in enumerate(class_names)},
    )
    expected = (len(class_names), config.hidden_size)
    if tuple(weight.shape) != expected or tuple(bias.shape) != expected[:1]:
        raise ValueError(
            f"weight {tuple(weight.shape)} and bias {tuple(bias.shape)} do not fit {expected[0]} classes and "
            f"hidden_size={expected[1]}; a probe of this checkpoint has weight {expected}."
        )
    if hasattr(config, "auto_map"):
        del config.auto_map  # names the checkpoint's copy of the code, which the classifier's folder does not hold
    encoder = LDAEModel.from_pretrained(checkpoint, config=config)
    model = LDAEForImageClassification(config).eval()
    model.ldae = encoder
    with torch.no_grad():
        model.classifier.weight.copy_(weight)
        model.classifier.bias.copy_(bias)
    model.classifier.to(next(encoder.parameters()).dtype)
    return model


def save_classifier(model: LDAEForImageClassification, folder: str | os.PathLike[str]) -> None:
    """Write a classifier and its image processor to a folder, for `AutoModelForImageClassification` and pipelines."""
    model.save_pretrained(folder)
    save_image_processor(folder, model.config)
