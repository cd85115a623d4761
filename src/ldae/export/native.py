"""Exports as transformers models, `--format transformers`, which need neither ldae nor remote code."""

import os
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    IJepaConfig,
    IJepaForImageClassification,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from ldae.export.fold import Affine, PlainViT


WEIGHTS_FILE = "model.safetensors"
# The modules of a block, in the order of the fields of PlainBlock.
SIGLIP_BLOCK = (
    "layer_norm1 self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.out_proj layer_norm2 mlp.fc1 mlp.fc2"
).split()
IJEPA_BLOCK = (
    "layernorm_before attention.q_proj attention.k_proj attention.v_proj attention.o_proj "
    "layernorm_after mlp.fc1 mlp.fc2"
).split()


def build_native(
    vit: PlainViT, id2label: Mapping[int, str] | None = None
) -> SiglipVisionModel | IJepaForImageClassification:
    """Build a transformers model with the weights of a plain ViT, in float32 and in evaluation mode.

    Args:
        vit ([`PlainViT`]): The weights.
        id2label (`Mapping[int, str]`, *optional*): Names of a classifier's classes.

    Returns:
        `SiglipVisionModel` for an encoder, with attention pooling that computes the mean over tokens, so that
        `pooler_output` and pipelines with `pool=True` work; `IJepaForImageClassification` for a classifier.
    """
    return build_siglip(vit) if vit.classifier is None else _build_ijepa(vit, vit.classifier, id2label)


@torch.no_grad()
def build_siglip(vit: PlainViT, *, pooling: bool = True, dtype: torch.dtype = torch.float32) -> SiglipVisionModel:
    """Build an encoder; without `pooling` it returns only tokens."""
    model = SiglipVisionModel(SiglipVisionConfig(**_shape(vit), vision_use_head=pooling)).eval().to(dtype)
    _put(model.embeddings.patch_embedding, vit.patches)
    model.embeddings.position_embedding.weight.copy_(vit.positions)
    _put_blocks(model.encoder.layers, vit, SIGLIP_BLOCK)
    _put(model.post_layernorm, vit.final_norm)
    if pooling:  # the mean: equal weights from a zero query, identity values and output, and no MLP
        head, identity = model.head, torch.eye(vit.hidden_size)
        for parameter in head.parameters():
            parameter.zero_()
        head.attention.in_proj_weight[2 * vit.hidden_size :].copy_(identity)
        head.attention.out_proj.weight.copy_(identity)
    return model


@torch.no_grad()
def _build_ijepa(vit: PlainViT, classifier: Affine, id2label: Mapping[int, str] | None) -> IJepaForImageClassification:
    names = dict(id2label) if id2label else {i: f"LABEL_{i}" for i in range(len(classifier[1]))}
    config = IJepaConfig(**_shape(vit), id2label=names, label2id={name: i for i, name in names.items()})
    model = IJepaForImageClassification(config).eval()
    _put(model.ijepa.embeddings.patch_embeddings.projection, vit.patches)
    model.ijepa.embeddings.position_embeddings.copy_(vit.positions[None])
    _put_blocks(model.ijepa.layers, vit, IJEPA_BLOCK)
    _put(model.ijepa.layernorm, vit.final_norm)
    _put(model.classifier, classifier)
    return model


def save_native(model: SiglipVisionModel | IJepaForImageClassification, folder: str | os.PathLike[str]) -> None:
    """Save a model so that transformers 4 and 5 load it.

    transformers 5 writes the keys of a `SiglipVisionModel` without the prefix that version 4 looks for (without it,
    version 4 would load random weights); version 5 reads both.
    """
    model.save_pretrained(folder)
    if isinstance(model, SiglipVisionModel):
        path = Path(folder, WEIGHTS_FILE)
        weights = {f"vision_model.{name}": tensor for name, tensor in load_file(path).items()}
        save_file(weights, path, metadata={"format": "pt"})


@torch.no_grad()
def run_native(folder: str | os.PathLike[str], pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
    """Compute the outputs of a saved model, loaded by the Auto classes."""
    classifier = IJepaConfig.get_config_dict(folder)[0]["model_type"] == "ijepa"
    kind: Any = AutoModelForImageClassification if classifier else AutoModel
    model = kind.from_pretrained(folder, local_files_only=True).eval()
    return dict(model(pixel_values))


def _shape(vit: PlainViT) -> dict[str, Any]:
    """Return the fields that both configurations share."""
    names = (
        "image_size patch_size num_channels hidden_size num_attention_heads intermediate_size hidden_act "
        "layer_norm_eps"
    ).split()
    return {"num_hidden_layers": len(vit.blocks), **{name: getattr(vit, name) for name in names}}


def _put_blocks(layers: Any, vit: PlainViT, names: list[str]) -> None:
    """Copy the weights of all blocks into the modules with these names."""
    for layer, block in zip(layers, vit.blocks, strict=True):
        for name, part in zip(names, fields(block), strict=True):
            _put(layer.get_submodule(name), getattr(block, part.name))


def _put(module: nn.Module, values: Affine) -> None:
    """Copy a weight and a bias into a module."""
    for name, value in zip(("weight", "bias"), values, strict=True):
        getattr(module, name).copy_(value)
