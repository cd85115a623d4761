"""Building networks of diffusers inside a transformers model, so that from_pretrained restores all of their tensors."""

import difflib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import initialization as init


def diffusers_class(name: str) -> Any:
    """
    A class of diffusers, imported now.

    Raises:
        ValueError: where diffusers is not installed.
    """
    try:
        import diffusers
    except ImportError as error:
        raise ValueError(f"a {name} comes from diffusers, which is not installed; pip install diffusers.") from error
    return getattr(diffusers, name)


def fields_of(kind: Any) -> list[str]:
    """Names that the constructor of a class of diffusers takes: the fields of its configuration."""
    return list(inspect.signature(kind.__init__).parameters)[1:]


def require_fields(kind: Any, given: dict[str, Any], name: str) -> None:
    """
    Refuse what a class of diffusers does not know, which it would ignore.

    Raises:
        ValueError: naming the field, and the one that it comes close to.
    """
    known = fields_of(kind)
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}."
            raise ValueError(f"{name} has {key!r}, which is no field of {kind.__name__}; {hint}")


def build_network(kind: Any, given: dict[str, Any], name: str) -> nn.Module:
    """
    A network of diffusers, without initial weights: they are drawn by [`reset`] or loaded.

    transformers builds a model on the meta device before it loads its weights, and what a network computes in its
    constructor, such as a table of positions, is lost there. Hence it is built on the CPU, and every module keeps such
    tensors aside, from which [`reset`] fills them in again. Without initial weights that costs next to nothing: memory
    that is not written to is not taken.

    Args:
        kind (`type`): Class of diffusers.
        given (`dict`): Fields of its configuration.
        name (`str`): What errors call them.

    Returns:
        `nn.Module`, on the device and in the dtype that torch has as default.

    Raises:
        ValueError: for a field that the class does not have.
    """
    require_fields(kind, given, name)
    device, dtype = torch.get_default_device(), torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"), init.no_init_weights():
            network = kind(**given)
    finally:
        torch.set_default_dtype(dtype)
    nn.Module.to(network, dtype=dtype)  # diffusers' own would warn that this is no loading
    for module in network.modules():
        module.computed_buffers = {key: value for key, value in module._buffers.items() if value is not None}
    return nn.Module.to(network, device=device)


def refuse_missing(missing: list[str], feature_layer: str) -> None:
    """
    Raises:
        ValueError: saying why a checkpoint lacks tensors of the model that was to be loaded of it.
    """
    for field in ("self_conditioning", "augmentation"):
        if any(f"{field}." in name for name in missing):
            name = {"augmentation": "augmentation_labels"}.get(field, field)
            raise ValueError(
                f"{name}=True is not possible with this checkpoint, which was trained without; leave it out."
            )
    raise ValueError(
        f"feature_layer={feature_layer!r} is not possible with this checkpoint, which lacks {len(missing)} tensors of the "
        f"network, such as {missing[0]}. It was cut at an earlier block: make it again with DDAEModel.from_diffusers."
    )


@torch.no_grad()
def reset(module: nn.Module) -> None:
    """
    Initial values of one module of a network from [`build_network`]: torch's own, as in diffusers, or by the rule that
    [`start_with`] gave it, and its buffers.
    """
    rule: Any = getattr(module, "initial_rule", None)
    draw: Any = getattr(module, "reset_parameters", None)
    if rule is not None:
        rule(module)
    elif draw is not None:
        draw()
    for name, value in getattr(module, "computed_buffers", {}).items():
        init.copy_(getattr(module, name), value)


def start_with(rule: Callable[[Any], None], *modules: Any) -> None:
    """Have the initial weights of modules drawn by a rule in place of torch's: [`zeros`], [`xavier`] or [`small_normal`]."""
    for module in modules:
        module.initial_rule = rule  # transformers asks modules with weights of their own, and no others


def zeros(layer: Any) -> None:
    """Weights and biases of 0."""
    init.zeros_(layer.weight)
    if getattr(layer, "bias", None) is not None:
        init.zeros_(layer.bias)


def xavier(layer: Any) -> None:
    """Xavier's uniform weights (a convolution's as those of the linear layer of its patches), biases of 0."""
    zeros(layer)
    bound = (6 / (layer.weight[0].numel() + len(layer.weight))) ** 0.5
    init.uniform_(layer.weight, -bound, bound)


def small_normal(layer: Any) -> None:
    """Normal weights with a standard deviation of 0.02, of an embedding."""
    init.normal_(layer.weight, std=0.02)
