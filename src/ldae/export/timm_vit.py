"""Exports as timm models, `--format timm`: a `VisionTransformer` without class token."""

import json
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers.activations import ACT2FN

from ldae.export.fold import PlainViT


WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"
ARCHITECTURE = "vit_base_patch16_224"  # a name of timm's plain VisionTransformer; every size is an argument
ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu", "relu": "relu", "silu": "silu"}
LAYER_NORM_EPS = 1e-6  # timm's, and no argument of create_model


def timm_arguments(vit: PlainViT) -> dict[str, Any]:
    """Return the arguments of `timm.create_model` or `VisionTransformer`.

    Raises:
        ValueError: If timm has no name for the activation, or another eps.
    """
    if vit.layer_norm_eps != LAYER_NORM_EPS:
        raise ValueError(
            f"layer_norm_eps={vit.layer_norm_eps} differs from {LAYER_NORM_EPS}, which timm's VisionTransformer "
            "always uses; choose format='transformers', 'onnx' or 'torch-export'."
        )
    if vit.hidden_act not in ACTIVATIONS:
        raise ValueError(
            f"hidden_act={vit.hidden_act!r} has no name in timm (known are {', '.join(ACTIVATIONS)}); choose "
            "format='transformers', 'onnx' or 'torch-export'."
        )
    ratio = vit.intermediate_size / vit.hidden_size
    if int(ratio * vit.hidden_size) != vit.intermediate_size:  # timm rounds the product down
        ratio = (vit.intermediate_size + 0.5) / vit.hidden_size
    return {
        "img_size": vit.image_size,
        "patch_size": vit.patch_size,
        "in_chans": vit.num_channels,
        "num_classes": 0 if vit.classifier is None else len(vit.classifier[1]),
        "global_pool": "avg",
        "embed_dim": vit.hidden_size,
        "depth": len(vit.blocks),
        "num_heads": vit.num_attention_heads,
        "mlp_ratio": ratio,
        "class_token": False,
        "fc_norm": False,  # the norm comes before the mean
        "act_layer": ACTIVATIONS[vit.hidden_act],
    }


def timm_state_dict(vit: PlainViT) -> dict[str, torch.Tensor]:
    """Return a plain ViT's weights under timm's names, in float32."""
    parts = {"patch_embed.proj": vit.patches, "norm": vit.final_norm}
    for i, block in enumerate(vit.blocks):
        weights, biases = zip(block.query, block.key, block.value, strict=True)
        parts |= {
            f"blocks.{i}.norm1": block.norm1,
            f"blocks.{i}.attn.qkv": (torch.cat(weights), torch.cat(biases)),
            f"blocks.{i}.attn.proj": block.out,
            f"blocks.{i}.norm2": block.norm2,
            f"blocks.{i}.mlp.fc1": block.fc1,
            f"blocks.{i}.mlp.fc2": block.fc2,
        }
    if vit.classifier is not None:
        parts["head"] = vit.classifier
    state = {"pos_embed": vit.positions[None]}
    for name, (weight, bias) in parts.items():
        state |= {f"{name}.weight": weight, f"{name}.bias": bias}
    return {name: tensor.detach().to("cpu", torch.float32).contiguous() for name, tensor in state.items()}


def save_timm(vit: PlainViT, folder: str | os.PathLike[str], id2label: Mapping[int, str] | None = None) -> None:
    """Write the weights and a config.json for `timm.create_model("local-dir:FOLDER", pretrained=True)`."""
    arguments = timm_arguments(vit)
    config: dict[str, Any] = {
        "architecture": ARCHITECTURE,
        "num_classes": arguments["num_classes"],
        "num_features": vit.hidden_size,
        "global_pool": "avg",
        "model_args": arguments,
        "pretrained_cfg": {
            "input_size": [vit.num_channels, vit.image_size, vit.image_size],
            "fixed_input_size": True,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": [0.5] * vit.num_channels,
            "std": [0.5] * vit.num_channels,
            "num_classes": arguments["num_classes"],
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }
    if id2label:
        config["label_names"] = [id2label[i] for i in range(len(id2label))]
    Path(folder, CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(timm_state_dict(vit), Path(folder, WEIGHTS_FILE), metadata={"format": "pt"})


@torch.no_grad()
def run_timm(folder: str | os.PathLike[str], pixel_values: torch.Tensor) -> dict[str, torch.Tensor]:
    """Compute the outputs of a saved folder, with timm if it is installed, or else with [`timm_forward`]."""
    config = json.loads(Path(folder, CONFIG_FILE).read_text(encoding="utf-8"))
    if timm_is_installed():
        import timm

        model: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
        tokens = model.forward_features(pixel_values)
        pooled = model.forward_head(tokens)
    else:
        tokens, pooled = timm_forward(load_file(Path(folder, WEIGHTS_FILE)), pixel_values, **config["model_args"])
    if config["num_classes"]:
        return {"logits": pooled}
    return {"last_hidden_state": tokens, "pooler_output": pooled}


def timm_is_installed() -> bool:
    """Tell whether timm can be imported; it needs torchvision."""
    return find_spec("timm") is not None and find_spec("torchvision") is not None


def timm_forward(
    state: Mapping[str, torch.Tensor], pixel_values: torch.Tensor, **arguments: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the forward of timm's `VisionTransformer` without timm, from its weights and arguments.

    Returns:
        The tokens `(B, N, C)` of `forward_features`, and the output of `forward_head`, `(B, C)` or logits `(B, K)`.
    """
    heads, activation = arguments["num_heads"], {v: k for k, v in ACTIVATIONS.items()}[arguments["act_layer"]]

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], LAYER_NORM_EPS)

    patches = F.conv2d(
        pixel_values, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], arguments["patch_size"]
    )
    x = patches.flatten(2).transpose(1, 2) + state["pos_embed"]  # (B, N, C)
    for i in range(arguments["depth"]):
        place = f"blocks.{i}"
        qkv = linear(norm(x, f"{place}.norm1"), f"{place}.attn.qkv").unflatten(2, (3, heads, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, N, C / heads) each
        attended = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        x = x + linear(attended, f"{place}.attn.proj")
        hidden = ACT2FN[activation](linear(norm(x, f"{place}.norm2"), f"{place}.mlp.fc1"))
        x = x + linear(hidden, f"{place}.mlp.fc2")
    tokens = norm(x, "norm")
    pooled = tokens.mean(dim=1)
    return tokens, linear(pooled, "head") if arguments["num_classes"] else pooled
