"""Layer-wise learning-rate decay: the nearer to the input a weight lies, the more slowly it trains."""

from typing import Any

from torch import nn

from ldae.training.blocks import Block, depth_of


def parameter_groups(
    parameters: dict[str, nn.Parameter], blocks: list[Block], *, layer_decay: float, weight_decay: float
) -> list[dict[str, Any]]:
    """AdamW's groups for fine-tuning (Clark et al. 2020, Bao et al. 2022; App. B of l-DAE has 0.85 and 0.65).

    A weight at depth i of L blocks (0: embeddings, L + 1: the classifier) trains at `layer_decay ** (L + 1 - i)` of the
    learning rate. Biases and scales of norms, which have one dimension, are not decayed.

    Args:
        parameters (`dict[str, nn.Parameter]`): Those that train, by name.
        blocks (`list[Block]`): As of [`~ldae.training.blocks.encoder_blocks`].
        layer_decay (`float`): Factor from one block to the one before it; 1 for none.
        weight_decay (`float`): Of weights with several dimensions.

    Returns:
        `list[dict]` with `params`, `lr_scale` and `weight_decay`, from the input to the classifier.

    Example:
    ```python
    >>> import torch
    >>> from ldae.training.blocks import Block
    >>> from ldae.training.layer_decay import parameter_groups
    >>> names = ("embed.weight", "layers.0.weight", "layers.0.bias", "classifier.weight")
    >>> weights = {name: torch.nn.Parameter(torch.zeros(2, 2) if "weight" in name else torch.zeros(2)) for name in names}
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
