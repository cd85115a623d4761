"""State that training changes: weights, AdamW's state and averaged weights, whole in every process or divided."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from ldae.sections import TrainingConfig
from ldae.training.checkpoint import PARTS, Checkpoint, Parts, read_shards
from ldae.training.sharding import divided_like, gathered, is_sharded, shard
from ldae.training.task import Task, trained_parameters


_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


class TrainingState:
    """The network of a task with its optimizer and the average of its weights.

    Under FSDP2 each process holds a part of each tensor. What this class returns for others to read is whole.

    Args:
        task ([`Task`]): Has its module on the CPU; gets its network, and its module as the network holds it.
        options ([`TrainingConfig`]): AdamW's options and `ema_decay`.
        accelerator (`Accelerator`): Gives the processes.

    Attributes:
        optimizer (`AcceleratedOptimizer`): AdamW.
        trained (`dict[str, nn.Parameter]`): The weights that train, by name.
        ema (`EMAModel`, *optional*): Their average.
        sharded (`bool`): Whether they are divided over the processes.
    """

    def __init__(self, task: Task, options: TrainingConfig, accelerator: Accelerator):
        self.accelerator, self.sharded = accelerator, is_sharded(accelerator)
        module = task.module.train()
        if self.sharded:
            self._plain = _without_values(module)
            shard(module, accelerator, task.activity)
        optimizer = torch.optim.AdamW(
            task.parameter_groups(),
            betas=options.adam_betas,
            weight_decay=options.weight_decay,
            fused=accelerator.device.type != "mps",
        )
        self.network: Any = module if self.sharded else accelerator.prepare_model(module)
        self.optimizer = accelerator.prepare_optimizer(optimizer)
        self.module: Any = accelerator.unwrap_model(self.network)
        task.network, task.module = self.network, self.module
        self.trained = trained_parameters(self.module)
        self.ema: EMAModel | None = None
        if options.ema_decay is not None:
            self.ema = EMAModel(self.trained.values(), decay=options.ema_decay)

    def clip(self, limit: float) -> torch.Tensor:
        """Clip the gradient to a norm, and return the norm `()` that it had."""
        return gathered(self.accelerator.clip_grad_norm_(self.trained.values(), limit))

    # -- for checkpoints and exports ----------------------------------------------------------------------------------

    def parts(self) -> Parts:
        """Return what a checkpoint holds: this process's shards, or whole tensors on the CPU in the main process.

        Every process must call it. Tensors may be the model's own: save them before the next step.
        """
        options = None if self.sharded else _WHOLE
        weights: dict[str, Any] = get_model_state_dict(self.network, options=options)
        optimizer: dict[str, Any] = get_optimizer_state_dict(self.network, self.optimizer.optimizer, options=options)
        states = optimizer.get("state", {}).items()
        return {
            "model": weights,
            "optimizer": {f"{weight}/{name}": value for weight, of in states for name, value in of.items()},
            "ema": self._average(),
        }

    def weights(self, parts: Parts | None = None) -> dict[str, torch.Tensor]:
        """Return whole weights and buffers on the CPU, averaged where there is an average.

        Every process must call it; the result is complete in the main process only. Weights among `parts`, which
        [`~TrainingState.parts`] has just returned, are not collected again if they are whole.
        """
        if parts is None or self.sharded:
            weights: dict[str, Any] = dict(get_model_state_dict(self.network, options=_WHOLE))
        else:
            weights = dict(parts["model"])
        for name, shadow in self._average().items():
            whole = gathered(shadow)
            if self.accelerator.is_main_process:
                weights[name] = whole.cpu()
        return weights

    def restore(self, checkpoint: Checkpoint) -> None:
        """Load weights, AdamW's state and the average, whichever way they were saved. Every process must call it."""
        from_shards = self.sharded and checkpoint.sharded
        parts: dict[str, Any] = self.parts() if from_shards else {part: checkpoint.read(part) for part in PARTS}
        if from_shards:
            read_shards(checkpoint.path, parts)
        options = StateDictOptions(full_state_dict=not from_shards)
        set_model_state_dict(self.network, parts["model"], options=options)
        if parts["optimizer"]:
            optimizer = self.optimizer.optimizer
            layout = get_optimizer_state_dict(self.network, optimizer)  # for its parameter groups
            state: dict[str, Any] = {}
            for key, value in parts["optimizer"].items():
                weight, name = key.rsplit("/", 1)
                state.setdefault(weight, {})[name] = value
            set_optimizer_state_dict(self.network, optimizer, {**layout, "state": state}, options=options)
        for name, shadow in self._average().items():
            shadow.copy_(divided_like(parts["ema"][name], shadow))
        if self.ema is not None:
            self.ema.optimization_step = checkpoint.state["ema_steps"]

    # -- for measuring ------------------------------------------------------------------------------------------------

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Use the averaged weights within a context; only for a run with `ema_decay`."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @contextmanager
    def whole_module(self) -> Iterator[Any]:
        """Yield the module with whole weights, which each process may call as often as it likes.

        Every process must enter the context. Under FSDP2 it takes the memory of the weights in each.
        """
        if not self.sharded:
            yield self.module
            return
        plain = self._plain
        for name, tensor in [*self.module.named_parameters(), *self.module.named_buffers()]:
            parent, _, own = name.rpartition(".")
            whole = nn.Parameter(gathered(tensor.detach())) if isinstance(tensor, nn.Parameter) else tensor
            setattr(plain.get_submodule(parent), own, whole)
        try:
            yield plain
        finally:
            plain.to("meta")

    def _average(self) -> dict[str, torch.Tensor]:
        """Return the averaged weights by name, empty without an average."""
        return {} if self.ema is None else dict(zip(self.trained, self.ema.shadow_params, strict=True))

    @torch.no_grad()
    def _swap(self) -> None:
        for name, shadow in self._average().items():
            held = self.trained[name].clone()
            self.trained[name].copy_(shadow)
            shadow.copy_(held)


def _without_values(module: nn.Module) -> nn.Module:
    """Return a copy of a module whose weights and buffers are on the meta device, where they take no memory."""
    tensors = [*module.parameters(), *module.buffers()]
    return copy.deepcopy(module, {id(tensor): tensor.to("meta") for tensor in tensors})
