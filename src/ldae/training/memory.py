"""Memory of a training step, counted tensor by tensor in two small steps."""

import weakref
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ldae.data import Batch
from ldae.training.loop import Run
from ldae.training.machine import free_memory
from ldae.training.progress import describe_bytes, describe_count
from ldae.training.task import Task, batch_statistics


SMALL, LARGE = 2, 4  # images of the two steps that are counted


@dataclass(frozen=True)
class MemoryEstimate:
    """Memory that a process of a run needs at its peak, in bytes."""

    held: int  # in use before the first step: the weights, and without an accelerator the whole process
    optimizer: int  # gradients, and the two moments of AdamW
    fixed: int  # what a step takes whatever its batch, such as weights in bfloat16
    per_image: int  # activations of one image at the peak of forward and backward pass
    micro_batch_size: int  # images in one forward
    free: int  # memory that is free on the device

    @property
    def missing(self) -> int:
        """Memory that the first step adds to `held`."""
        return self.optimizer + self.fixed + self.per_image * self.micro_batch_size

    @property
    def fits(self) -> bool:
        """True if there is enough free memory."""
        return self.missing <= self.free

    def fitting_micro_batch(self, share: int) -> int | None:
        """Return the largest divisor of a process's share of the batch that fits, or `None` if none does."""
        room = self.free - self.optimizer - self.fixed
        sizes = (size for size in range(share, 0, -1) if share % size == 0)
        return next((size for size in sizes if size * self.per_image <= room), None)

    def __str__(self) -> str:
        activations = self.per_image * self.micro_batch_size
        return (
            f"Memory: about {describe_bytes(self.held + self.missing)}, of which {describe_bytes(activations)} are "
            f"activations of {describe_count(self.micro_batch_size, 'image')}; {describe_bytes(self.free)} are free"
        )


def estimate_memory(run: Run) -> MemoryEstimate | None:
    """Estimate the memory of a run from two small steps; `None` for sharded weights."""
    if run.device.type not in ("cpu", "cuda") or run.state.sharded:
        return None
    held = torch.cuda.memory_allocated(run.device) if run.device.type == "cuda" else psutil.Process().memory_info().rss
    free, statistics = free_memory(run.device), batch_statistics(run.task.module)
    with run.accelerator.no_sync(run.task.network):
        fixed, per_image = count_step_bytes(run.task.module, lambda count: blank_loss(run.task, count, run.device))
    for buffer, before in statistics:
        buffer.copy_(before)
    trained = sum(parameter.numel() * parameter.element_size() for parameter in run.state.trained.values())
    return MemoryEstimate(held, 3 * trained, fixed, per_image, run.micro_batch_size, free)


def blank_loss(task: Task, count: int, device: torch.device | str) -> torch.Tensor:
    """Compute a task's loss of some black images, or of latents that are zero."""
    config: Any = task.config
    images: Any = None
    data, latents = task.recipe.data, None
    first = (task.options.steps - 1) * task.options.total_batch_size  # of the last step, when every term counts
    positions, labels = torch.arange(first, first + count), torch.zeros(count, dtype=torch.int64)
    if task.examples.latent_cache is None:
        side = data.decode_size or config.image_size
        images = torch.zeros(count, config.num_channels, side, side, dtype=torch.uint8)
    else:
        latents = torch.zeros(count, 2 if data.horizontal_flip else 1, config.num_patches, config.latent_dim)
    return task.loss(Batch(images, positions, labels, latents), positions.to(device))


def count_step_bytes(module: nn.Module, loss: Callable[[int], torch.Tensor]) -> tuple[int, int]:
    """Count the bytes that a step needs at its peak beside weights, gradients and the optimizer's state.

    Two small steps are taken forward and backward, so what the backward pass computes again is counted, too. Both do
    the same operations, and at each of them memory grows on a straight line with the number of images. In a wide
    network the peak of a small step is where its weights are converted, and that of a large one elsewhere, so the
    steepest of these lines counts, from the peak of the smaller step on.

    Args:
        module (`nn.Module`): The module that trains. Its gradients are dropped.
        loss (`Callable`): Computes the loss of a batch of so many images.

    Returns:
        `fixed` and `per_image` of a [`MemoryEstimate`].
    """
    with ExitStack() as hooks:
        for parameter in module.parameters():
            if parameter.requires_grad:
                hooks.callback(parameter.register_post_accumulate_grad_hook(_drop_gradient).remove)
        small, large = (_live_bytes(module, loss, count) for count in (SMALL, LARGE))
    same = len(small) == len(large)  # else an operation was chosen by the size of the batch
    grown = max(b - a for a, b in zip(small, large, strict=True)) if same else max(large) - max(small)
    per_image = max(0, grown) // (LARGE - SMALL)
    return max(0, max(small) - SMALL * per_image), per_image


def _live_bytes(module: nn.Module, loss: Callable[[int], torch.Tensor], count: int) -> list[int]:
    with LiveBytes(module) as live, torch.compiler.set_stance("force_eager"):
        loss(count).backward()
    return live.history


def _drop_gradient(parameter: torch.Tensor) -> None:
    parameter.grad = None


class LiveBytes(TorchDispatchMode):
    """Count of the bytes of tensors that operations within this context make and that are still in use.

    `history` has the count after each new tensor. Real tensors and those of `FakeTensorMode` are counted alike, in the
    forward and in the backward pass. Weights and buffers of the module, and views of them, are not counted.
    """

    def __init__(self, module: nn.Module):
        super().__init__()
        held = [*module.parameters(), *module.buffers()]
        self._sizes: dict[int, int] = {tensor.untyped_storage()._cdata: 0 for tensor in held}
        self.history: list[int] = []
        self._live = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in self._sizes:
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        self._sizes[storage._cdata] = storage.nbytes()
        self._live += storage.nbytes()
        self.history.append(self._live)
        weakref.finalize(storage, self._remove, storage._cdata).atexit = False

    def _remove(self, key: int) -> None:
        self._live -= self._sizes.pop(key)
