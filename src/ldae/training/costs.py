"""Costs of a pre-training recipe, counted without computing, and its memory and time on accelerators elsewhere."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForPreTraining

from ldae.training.memory import MemoryEstimate, blank_loss, count_step_bytes
from ldae.training.pretraining import DenoisingTask
from ldae.training.recipe import Recipe
from ldae.training.task import trained_parameters


@dataclass(frozen=True)
class RecipeCosts:
    """Costs of a recipe on any machine; a multiplication with an addition counts as two FLOPs."""

    weights: int  # number of weights that train
    held: int  # bytes of all weights and buffers, and of their moving average if the recipe keeps one
    trained: int  # bytes of the weights that train
    fixed: int  # bytes that a step takes whatever its batch
    per_image: int  # bytes that a step takes for each image
    forward: int  # FLOPs of the forward pass of one image
    step: int  # FLOPs of forward and backward pass of one image, and of activations that are computed again

    def memory(self, capacity: int, micro_batch_size: int, devices: int = 1) -> MemoryEstimate:
        """Estimate the memory of a device of `capacity` bytes that holds nothing yet.

        With several devices, each holds the gradients twice to exchange them.
        """
        held = self.held + (self.trained if devices > 1 else 0)
        return MemoryEstimate(held, 3 * self.trained, self.fixed, self.per_image, micro_batch_size, capacity - held)


@dataclass(frozen=True)
class DataSheet:
    """Published figures of an accelerator."""

    title: str  # name with its variant
    memory: int  # in GB (10^9 bytes)
    bf16: float | None  # TFLOPS of dense matrix products in bfloat16; None if the hardware has none
    float32: float  # TFLOPS of matrix products in float32, without TF32


# From NVIDIA's data sheets and architecture white papers (Turing, Ampere, Ada, Hopper, Blackwell): dense rates with
# float32 sums, which are half of the rates that the sheets give with sparsity.
ACCELERATORS = {
    "a100": DataSheet("A100 SXM 80 GB", 80, 312, 19.5),
    "a100-40gb": DataSheet("A100 SXM 40 GB", 40, 312, 19.5),
    "b200": DataSheet("B200 SXM", 180, 2250, 75),
    "h100": DataSheet("H100 SXM", 80, 989.4, 66.9),
    "h200": DataSheet("H200 SXM", 141, 989.4, 66.9),
    "l4": DataSheet("L4", 24, 121, 30.3),
    "l40s": DataSheet("L40S", 48, 362, 91.6),
    "rtx4090": DataSheet("GeForce RTX 4090", 24, 165.2, 82.6),
    "t4": DataSheet("T4", 16, None, 8.1),
}
KEPT_FREE = 0.1  # share of the memory for CUDA itself, its libraries and fragmentation


@dataclass(frozen=True)
class Plan:
    """Memory and time of a pre-training on accelerators that are not here, by arithmetic from published figures.

    Raises:
        ValueError: If the batch does not divide over the devices, or they cannot compute in the recipe's precision.
    """

    recipe: Recipe
    costs: RecipeCosts
    accelerator: DataSheet
    devices: int
    mfu: float  # share of the published peak that training reaches

    def __post_init__(self) -> None:
        self.recipe.training.batch_layout(self.devices)
        if self.bf16 and self.accelerator.bf16 is None:
            raise ValueError(
                f"mixed_precision=bf16 needs bfloat16, which a {self.accelerator.title} does not have; give "
                "--mixed_precision no."
            )

    @property
    def bf16(self) -> bool:
        """True if the recipe computes in bfloat16."""
        return self.recipe.training.mixed_precision == "bf16"

    @property
    def peak(self) -> float:
        """Published FLOPs a second of a device in the recipe's precision."""
        tflops = self.accelerator.bf16 if self.bf16 else self.accelerator.float32
        return 1e12 * (tflops or 0)

    @property
    def memory(self) -> MemoryEstimate:
        """Memory of a device, of which a share is kept free."""
        capacity = int(1e9 * self.accelerator.memory * (1 - KEPT_FREE))
        return self.costs.memory(capacity, self.recipe.training.batch_layout(self.devices)[0], self.devices)

    @property
    def largest_micro_batch(self) -> int | None:
        """The largest micro-batch that fits and divides a device's share of the batch; `None` if none does."""
        return self.memory.fitting_micro_batch(self.recipe.training.total_batch_size // self.devices)

    @property
    def images_per_second(self) -> float:
        """Images a second of a device."""
        return self.mfu * self.peak / self.costs.step

    @property
    def seconds(self) -> float:
        """Time of the whole budget."""
        return self.recipe.training.images / (self.images_per_second * self.devices)


def count_costs(recipe: Recipe) -> RecipeCosts:
    """Count the costs of a pre-training with tensors that have shapes and no values, so no memory is needed.

    Raises:
        ValueError: If the model cannot be built.
    """
    task = DenoisingTask(replace(recipe, training=replace(recipe.training, compile=False)))
    task.examples = SimpleNamespace(latent_cache=None)  # type: ignore[assignment]
    with torch.device("meta"):
        model: Any = AutoModelForPreTraining.from_config(task.config)
    task.module = task.network = task.optimized(model).train()
    amp = torch.autocast("cpu", torch.bfloat16) if recipe.training.mixed_precision == "bf16" else nullcontext()
    with _without_values(model), amp:
        # Attention as plain products, whose FLOPs are known on all devices; as one operation it keeps less.
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            loss = blank_loss(task, 1, "cpu")
            forward = counter.get_total_flops()
            loss.backward()
        model.zero_grad()
        fixed, per_image = count_step_bytes(model, lambda count: blank_loss(task, count, "cpu"))
    parameters = trained_parameters(model).values()
    trained = sum(weight.numel() * weight.element_size() for weight in parameters)
    held = sum(tensor.numel() * tensor.element_size() for tensor in [*model.parameters(), *model.buffers()])
    return RecipeCosts(
        weights=sum(weight.numel() for weight in parameters),
        held=held + (trained if recipe.training.ema_decay is not None else 0),
        trained=trained,
        fixed=fixed,
        per_image=per_image,
        forward=forward,
        step=counter.get_total_flops(),
    )


@contextmanager
def _without_values(module: nn.Module) -> Iterator[None]:
    """Compute with tensors of the CPU that have no values, after a module on the meta device was made of such."""
    with FakeTensorMode(allow_non_fake_inputs=True):
        for part in module.modules():
            for name, weight in part._parameters.items():
                if weight is not None:
                    empty = torch.empty(weight.shape, dtype=weight.dtype)
                    part._parameters[name] = nn.Parameter(empty, weight.requires_grad)
            for name, buffer in part._buffers.items():
                if buffer is not None:
                    part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
        yield
