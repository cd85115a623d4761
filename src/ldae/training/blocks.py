"""The blocks of an image classifier in running order, and layer-wise learning-rate decay over them."""

import re
from dataclasses import dataclass
from typing import Any

from torch import nn

from ldae.models.taps_ddae import block_ends


_SAMPLER = re.compile(r"((?:down|up)_blocks\.\d+)\.(?:down|up)samplers$")


@dataclass(frozen=True)
class Block:
    """One block of an encoder.

    Args:
        modules (`tuple[str, ...]`): Names of its modules in the classifier. A residual block of a UNet includes the
            attention and the change of resolution that follow it.
    """

    modules: tuple[str, ...]

    def holds(self, name: str) -> bool:
        """Return whether the block contains a parameter or a module of that name."""
        return any(name == module or name.startswith(f"{module}.") for module in self.modules)


def encoder_blocks(model: Any) -> list[Block]:
    """List the blocks of a classifier's encoder, first to last.

    Args:
        model (`LDAEForImageClassification` or `DDAEForImageClassification`): The classifier.

    Returns:
        `list[Block]`: Transformer blocks, or the residual(+attention) blocks of a UNet, which its paper counts as
        layers.

    Example:
    ```python
    >>> from ldae import LDAEConfig, LDAEForImageClassification
    >>> from ldae.training.blocks import encoder_blocks
    >>> model = LDAEForImageClassification(LDAEConfig.from_size("nano", image_size=16, patch_size=4, latent_dim=8))
    >>> [block.modules for block in encoder_blocks(model)]
    [('ldae.layers.0',), ('ldae.layers.1',)]

    ```
    """
    if not hasattr(model, "ddae"):
        return [Block((f"ldae.layers.{index}",)) for index in range(len(model.ldae.layers))]
    prefix = "ddae.denoiser"
    taps = list(model.ddae.feature_layers)
    groups: list[list[str]] = [[]]
    for tap in taps:
        groups[-1].append(tap)
        if tap in block_ends(taps):
            groups.append([])
    groups = [group for group in groups if group]
    for name, _ in model.ddae.denoiser.named_modules():
        if found := _SAMPLER.match(name):
            place = f"{found[1]}."
            [group for group in groups if group[-1].startswith(place)][-1].append(name)
    return [Block(tuple(f"{prefix}.{name}" for name in group)) for group in groups]


def depth_of(name: str, blocks: list[Block]) -> int:
    """Return a parameter's depth: 0 for embeddings, i + 1 for block i, `len(blocks) + 1` for the classifier."""
    if name.startswith("classifier."):
        return len(blocks) + 1
    return next((index + 1 for index, block in enumerate(blocks) if block.holds(name)), 0)


def parameter_groups(
    parameters: dict[str, nn.Parameter], blocks: list[Block], *, layer_decay: float, weight_decay: float
) -> list[dict[str, Any]]:
    """Group parameters for AdamW with layer-wise learning-rate decay (Clark et al. 2020, Bao et al. 2022).

    A weight at depth i of L blocks trains at `layer_decay ** (L + 1 - i)` of the learning rate. Weight decay leaves
    out parameters of one dimension: biases and the scales of norms.

    Args:
        parameters (`dict[str, nn.Parameter]`): Trained parameters by name.
        blocks (`list[Block]`): Blocks from [`encoder_blocks`].
        layer_decay (`float`): Factor from one block to the one before it; 1 for none (App. B: 0.85 and 0.65).
        weight_decay (`float`): Weight decay.

    Returns:
        `list[dict]` with `params`, `lr_scale` and `weight_decay`, from the input to the classifier.

    Example:
    ```python
    >>> import torch
    >>> from ldae.training.blocks import Block, parameter_groups
    >>> names = ("embed.weight", "layers.0.weight", "layers.0.bias", "classifier.weight")
    >>> shapes = [(2, 2), (2, 2), (2,), (2, 2)]
    >>> weights = {name: torch.nn.Parameter(torch.zeros(shape)) for name, shape in zip(names, shapes)}
    >>> groups = parameter_groups(weights, [Block(("layers.0",))], layer_decay=0.5, weight_decay=0.05)
    >>> [(group["lr_scale"], group["weight_decay"]) for group in groups]
    [(0.25, 0.05), (0.5, 0.05), (0.5, 0.0), (1.0, 0.05)]

    ```
    """
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        groups.setdefault((depth_of(name, blocks), parameter.ndim < 2), []).append(parameter)
    return [
        {
            "params": groups[depth, flat],
            "lr_scale": layer_decay ** (len(blocks) + 1 - depth),
            "weight_decay": 0.0 if flat else weight_decay,
        }
        for depth, flat in sorted(groups)
    ]
