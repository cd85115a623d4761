"""Weights divided over the processes of a launch by FSDP2, where Accelerate's configuration asks for it."""

import warnings
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, convert_outputs_to_fp32
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from ldae.training.machine import return_freed_memory


def is_sharded(accelerator: Accelerator) -> bool:
    """Return whether the launch divides weights over its processes."""
    return accelerator.distributed_type == DistributedType.FSDP


def blocks_of(module: nn.Module) -> list[nn.Module]:
    """Return the blocks of a model that are gathered one at a time: those that transformers does not split."""
    names = getattr(module, "_no_split_modules", None) or ()
    return [part for part in module.modules() if type(part).__name__ in names]


def shard(module: nn.Module, accelerator: Accelerator, activity: str) -> None:
    """Divide the weights of a model, the same in every process, over the processes, and move them to the device.

    Weights and gradients stay in float32 and mixed precision is autocast's, as under DDP, so the losses are DDP's too.
    This is done here and not by `Accelerator.prepare`, which casts the weights and the images to bfloat16.

    Raises:
        ValueError: If the module has no blocks.
    """
    plugin: Any = accelerator.state.fsdp_plugin
    blocks = blocks_of(module)
    if not blocks:
        raise ValueError(
            f"FSDP does not divide the {activity}'s network; train it in a launch of its own with multi_gpu.yaml (a "
            "latent tokenizer by ldae train_tokenizer, whose folder is then given as tokenizer)."
        )
    mesh = accelerator.torch_device_mesh
    if mesh is None:
        mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    else:
        mesh = mesh[tuple(accelerator.parallelism_config.dp_dim_names)]
    if accelerator.mixed_precision != "no":
        module.forward = convert_outputs_to_fp32(accelerator.autocast()(module.forward))
    return_freed_memory()  # each step gathers weights and frees them again
    # No output is changed in place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    for block in blocks[1:]:  # the first with the rest: diffusers' DiT uses a layer of it again after the last block
        fully_shard(block, mesh=mesh, reshard_after_forward=plugin.reshard_after_forward)
    fully_shard(module, mesh=mesh)


def gathered(tensor: torch.Tensor) -> torch.Tensor:
    """Return a whole tensor. Every process must call it for a shard."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def divided_like(tensor: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return this process's shard of a whole tensor, if another tensor of that shape is divided, on its device."""
    if not isinstance(other, DTensor) or isinstance(tensor, DTensor):
        return tensor
    return distribute_tensor(tensor.to(other.device), other.device_mesh, other.placements, src_data_rank=None)
