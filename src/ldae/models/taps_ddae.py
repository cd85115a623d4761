"""Taps: the named blocks of a network at which features are read, several at once by hooks."""

import difflib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn


class StopForward(Exception):
    """Ends a forward once all taps have run."""


def record(
    network: nn.Module,
    taps: Sequence[str],
    run: Callable[[], Any],
    read: Callable[[torch.Tensor], torch.Tensor] = lambda activation: activation,
) -> dict[str, torch.Tensor]:
    """Record the outputs of some modules, by name, in one forward, which ends as soon as all of them have run.

    Args:
        network (`nn.Module`): The network.
        taps (`Sequence[str]`): Names of its modules.
        run (`Callable`): Starts the forward.
        read (`Callable`, *optional*): Reduces an activation to the part to keep, such as its mean.
    """
    found: dict[str, torch.Tensor] = {}

    def hook_of(name: str) -> Callable:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            found[name] = read(output[0] if isinstance(output, tuple) else output)
            if len(found) == len(taps):
                raise StopForward

        return hook

    handles = [network.get_submodule(name).register_forward_hook(hook_of(name)) for name in taps]
    try:
        run()
    except StopForward:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return {name: found[name] for name in taps}


def block_ends(taps: Sequence[str]) -> list[str]:
    """Return the last tap of each residual(+attention) block of a UNet, the layers that the paper counts.

    For other networks all taps are returned.

    Example:
        >>> block_ends(["up_blocks.0.resnets.0", "up_blocks.0.attentions.0", "up_blocks.1.resnets.0"])
        ['up_blocks.0.attentions.0', 'up_blocks.1.resnets.0']
    """
    attentions = {tap for tap in taps if ".attentions." in tap}
    return [tap for tap in taps if tap in attentions or tap.replace(".resnets.", ".attentions.") not in attentions]


def choose_tap(taps: Sequence[str], name: str | None, default: str) -> str:
    """Choose a tap by its name, `"last"`, or `None` for the default.

    Raises:
        ValueError: If the name is unknown.
    """
    if name is None:
        return default
    if name == "last":
        return taps[-1]
    if name not in taps:
        close = difflib.get_close_matches(name, taps, n=1)
        hint = f"did you mean {close[0]!r}? Known are" if close else "choose one of"
        raise ValueError(f"feature_layer={name!r} is unknown; {hint} {', '.join(taps)}.")
    return name
