"""The memory that a training step takes beside the weights, counted tensor by tensor."""

import ctypes
import weakref
from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


SMALL, LARGE = 2, 4  # images of the two steps that are counted
MMAP_THRESHOLD = -3  # glibc's M_MMAP_THRESHOLD


class LiveBytes(TorchDispatchMode):
    """Count of the bytes of the tensors that operations within this context make and that are still in use.

    Real tensors and those of `FakeTensorMode` are counted alike, in the forward and in the backward pass.

    Args:
        module (`nn.Module`): Module whose weights and buffers, and views of them, are not counted.

    Attributes:
        peak (`int`): Most bytes that were in use at once.
    """

    def __init__(self, module: nn.Module):
        super().__init__()
        held = [*module.parameters(), *module.buffers()]
        self._sizes: dict[int, int] = {tensor.untyped_storage()._cdata: 0 for tensor in held}
        self.peak = self._live = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self._sizes:
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        self._sizes[storage._cdata] = storage.nbytes()
        self._live += storage.nbytes()
        self.peak = max(self.peak, self._live)
        weakref.finalize(storage, self._remove, storage._cdata).atexit = False

    def _remove(self, key: int) -> None:
        self._live -= self._sizes.pop(key)


def count_step_bytes(module: nn.Module, loss: Callable[[int], torch.Tensor]) -> tuple[int, int]:
    """Count the bytes that a step needs at its peak beside weights, gradients and the optimizer's state.

    Two small steps are taken forward and backward, so what the backward pass computes again is counted, too. The
    difference between them is the part of each image: with the number of images, memory grows on a straight line.

    Args:
        module (`nn.Module`): The module that trains. Its gradients are dropped.
        loss (`Callable`): Computes the loss of a batch of so many images.

    Returns:
        Bytes that do not depend on the batch, such as weights in bfloat16, and bytes of an image.
    """
    with ExitStack() as hooks:
        for parameter in module.parameters():
            if parameter.requires_grad:
                hooks.callback(parameter.register_post_accumulate_grad_hook(_drop_gradient).remove)
        small, large = (_peak(module, loss, count) for count in (SMALL, LARGE))
    per_image = max(0, large - small) // (LARGE - SMALL)
    return max(0, small - SMALL * per_image), per_image


def return_freed_memory() -> None:
    """Let glibc return a tensor of 1 MiB or more to the system as soon as it is freed; elsewhere do nothing.

    It keeps what is freed for the next tensors. Where each block is computed again, tensors of many sizes come and go,
    they fit badly into the gaps, and the process takes twice the memory that its tensors need.
    """
    with suppress(OSError, AttributeError):  # no glibc
        ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, 2**20)


def _peak(module: nn.Module, loss: Callable[[int], torch.Tensor], count: int) -> int:
    with LiveBytes(module) as live, torch.compiler.set_stance("force_eager"):
        loss(count).backward()
    return live.peak


def _drop_gradient(parameter: torch.Tensor) -> None:
    parameter.grad = None
