"""Classes of diffusers inside a transformers model: importing them, checking their fields, building networks."""

import difflib
import inspect
from typing import Any

import torch
from torch import nn
from transformers import initialization as init


def diffusers_class(name: str) -> Any:
    """Import a class of diffusers.

    Raises:
        ValueError: If diffusers is not installed.
    """
    try:
        import diffusers
    except ImportError as error:
        raise ValueError(f"a {name} comes from diffusers, which is not installed; pip install diffusers.") from error
    return getattr(diffusers, name)


def field_names(diffusers_type: Any) -> list[str]:
    """Return the names of the fields of a diffusers class's configuration: what its constructor takes."""
    return list(inspect.signature(diffusers_type.__init__).parameters)[1:]


def require_fields(diffusers_type: Any, fields: dict[str, Any], name: str) -> None:
    """Refuse fields that a class of diffusers does not have, which it would ignore.

    Raises:
        ValueError: naming the field, and the most similar one of the class.
    """
    known = field_names(diffusers_type)
    for key in fields:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}."
            raise ValueError(f"{name} has {key!r}, which {diffusers_type.__name__} does not have; {hint}")


def build_network(diffusers_type: Any, fields: dict[str, Any], name: str) -> nn.Module:
    """Build a network of diffusers, without initial weights, which are drawn by [`initialize`] or loaded.

    transformers builds a model on the meta device before it loads its weights. Tensors that a network computes in its
    constructor, such as a table of positions, would be lost there. So the network is built on the CPU, and every
    module keeps such tensors aside, from which [`initialize`] restores them. Without initial weights that costs next
    to nothing: memory that is not written to is not taken.

    Args:
        diffusers_type (`type`): Class of diffusers.
        fields (`dict`): Fields of its configuration.
        name (`str`): The name of these fields in errors.

    Returns:
        `nn.Module`, on torch's default device and in its default dtype.

    Raises:
        ValueError: If the class does not have one of the fields.
    """
    require_fields(diffusers_type, fields, name)
    device, dtype = torch.get_default_device(), torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"), init.no_init_weights():
            network = diffusers_type(**fields)
    finally:
        torch.set_default_dtype(dtype)
    nn.Module.to(network, dtype=dtype)  # diffusers' own `to` would warn
    for module in network.modules():
        module.computed_buffers = {key: value for key, value in module._buffers.items() if value is not None}
    return nn.Module.to(network, device=device)
