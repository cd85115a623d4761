"""Taps: the named blocks of a network at which features are read, several at once by hooks, or one where it is cut."""

import difflib
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import Any

import torch
from torch import nn


class StopForward(Exception):
    """Ends a forward once all taps have run."""


class PassThrough(nn.Module):
    """The replacement of a block that was cut off: it returns its first input, in the form of the block's output."""

    def forward(self, hidden: torch.Tensor, *args: Any, return_dict: bool | None = None, **kwargs: Any) -> Any:
        return hidden if return_dict is None else (hidden,)


def record(
    network: nn.Module,
    taps: Sequence[str],
    run: Callable[[], Any],
    read: Callable[[torch.Tensor], torch.Tensor] = lambda activation: activation,
) -> dict[str, torch.Tensor]:
    """Record the outputs of some modules in one forward, which ends as soon as all of them have run.

    Args:
        network (`nn.Module`): The network.
        taps (`Sequence[str]`): Names of its modules.
        run (`Callable`): Starts the forward.
        read (`Callable`, *optional*): Reduces an activation to the part to keep, such as its mean.

    Returns:
        `dict[str, torch.Tensor]`: by name, in the order of `taps`.
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


def unet_taps(unet: Any) -> list[str]:
    """Return the names of all residual and attention blocks of a UNet of diffusers, in the order in which they run."""
    places = [(f"down_blocks.{i}", block) for i, block in enumerate(unet.down_blocks)]
    places += [("mid_block", unet.mid_block)] if unet.mid_block is not None else []
    places += [(f"up_blocks.{i}", block) for i, block in enumerate(unet.up_blocks)]
    taps = []
    for place, block in places:
        pairs = zip_longest(block.resnets, getattr(block, "attentions", None) or [])
        for j, (resnet, attention) in enumerate(pairs):
            taps += [f"{place}.resnets.{j}"] if resnet is not None else []
            taps += [f"{place}.attentions.{j}"] if attention is not None else []
    return taps


def cut_unet(unet: Any, tap: str) -> None:
    """Remove everything from a UNet of diffusers that runs after a tap.

    Its own forward then returns the tap's activation. Later blocks are removed from its lists; layers that cannot be
    removed are replaced by [`PassThrough`].
    """
    *place, kind, index = tap.split(".")
    j = int(index)
    if place[0] != "up_blocks":
        unet.up_blocks = nn.ModuleList()
    else:
        unet.up_blocks = unet.up_blocks[: int(place[1]) + 1]
    if place[0] == "down_blocks":
        unet.down_blocks = unet.down_blocks[: int(place[1]) + 1]
        unet.mid_block = None
    block: Any = unet.get_submodule(".".join(place))
    block.resnets = block.resnets[: j + 1]
    attentions = getattr(block, "attentions", None)
    if attentions is not None:
        # A middle block pairs each attention with the residual block after it, the others with the one before.
        middle = place[0] == "mid_block"
        block.attentions = attentions[: j + 1] if kind == "attentions" else attentions[:j]
        if middle and kind == "attentions":
            block.resnets.append(PassThrough())
        elif not middle and kind == "resnets":
            block.attentions.append(PassThrough())
    for sampler in ("downsamplers", "upsamplers"):
        if getattr(block, sampler, None) is not None:
            setattr(block, sampler, None)
    unet.conv_norm_out = unet.conv_act = unet.conv_out = PassThrough()


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
