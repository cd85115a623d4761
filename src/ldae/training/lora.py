"""LoRA by peft: low-rank factors beside the frozen weights of an encoder, merged when it is saved."""

from typing import Any

from torch import nn

from ldae.training.blocks import Block


# Layers of transformer blocks (ours, then diffusers'), and the convolutions of a residual block.
TARGETS = "q_proj k_proj v_proj o_proj fc1 fc2 to_q to_k to_v to_out.0 net.0.proj net.2 conv1 conv2".split()


def add_lora(model: Any, blocks: list[Block], rank: int) -> None:
    """Freeze a classifier except for its head, and add LoRA factors to the layers of some blocks (Hu et al. 2022).

    The product of the factors is not scaled (alpha = rank).

    Raises:
        ValueError: If peft is not installed, or no layer can have factors.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ValueError(
            f"lora_rank={rank} needs peft, which is not installed; pip install 'ldae[finetune]'."
        ) from error
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
        and any(name.endswith(f".{target}") for target in TARGETS)
        and any(block.holds(name) for block in blocks)
    ]
    if not names:
        raise ValueError(f"lora_rank={rank} needs a block that is not frozen; lower frozen_blocks.")
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=names), model)
    model.classifier.requires_grad_(True)


def merge_lora(model: Any) -> None:
    """Merge the LoRA factors of a classifier into plain layers, in place."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    for name, layer in layers:
        layer.merge()
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, layer.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config
