"""Drop path (stochastic depth) by hooks on the last layer of each residual branch, for any encoder."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ldae.models.randomness_ldae import DROP_PATH, keyed_uniform
from ldae.models.transformer_ldae import LDAELayer
from ldae.training.blocks import Block


class DropPath:
    """Stochastic depth: drops residual branches of single examples in training (Huang et al. 2016).

    The rate rises linearly from 0 at the first block to `rate` at the last. The branches that an example loses depend
    only on the seed and on its position in the run. The saved model holds no trace of the hooks.

    Args:
        model (`nn.Module`): A classifier.
        blocks (`list[Block]`): Blocks from [`~ldae.training.blocks.encoder_blocks`].
        rate (`float`): Rate of the last block, at least 0 and below 1.
        first (`int`, defaults to 0): Number of blocks at the beginning without drop path.

    Raises:
        ValueError: If the branches of a block are unknown.
    """

    def __init__(self, model: nn.Module, blocks: list[Block], rate: float, first: int = 0):
        self.rates: list[float] = []  # of each branch
        self.scales: torch.Tensor | None = None  # (branches, b)
        for index, block in enumerate(blocks):
            block_rate = rate * index / max(1, len(blocks) - 1)
            if index < first or not block_rate:
                continue
            for name in block.modules:
                for branch in _branches(model.get_submodule(name), name):
                    branch.register_forward_hook(self._hook(len(self.rates)))
                    self.rates.append(block_rate)

    def draw(self, positions: torch.Tensor, seed: int) -> None:
        """Choose the branches that the examples at these positions `(b,)` of the run keep in the next forward."""
        if self.rates:
            kept = 1 - torch.tensor(self.rates, device=positions.device)[:, None]  # (branches, 1)
            uniform = keyed_uniform(seed, DROP_PATH, positions, len(self.rates)).T  # (branches, b)
            self.scales = (uniform < kept) / kept

    def _hook(self, number: int) -> Callable[..., Any]:
        def scale(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
            if not module.training or self.scales is None:
                return output
            return output * self.scales[number].view(-1, *[1] * (output.ndim - 1)).to(output.dtype)

        return scale


def _branches(module: Any, name: str) -> list[nn.Module]:
    """Return the modules whose outputs are added to the input of a block."""
    from diffusers.models.attention import BasicTransformerBlock
    from diffusers.models.attention_processor import Attention
    from diffusers.models.resnet import ResnetBlock2D, ResnetBlockCondNorm2D
    from diffusers.models.transformers import Transformer2DModel

    if isinstance(module, LDAELayer):
        return [module.attention.o_proj, module.mlp.fc2]
    if isinstance(module, BasicTransformerBlock):
        return [part for part in (module.attn1, module.attn2, module.ff) if part is not None]
    if isinstance(module, Transformer2DModel):
        return [part for block in module.transformer_blocks for part in _branches(block, name)]
    if isinstance(module, ResnetBlock2D | ResnetBlockCondNorm2D):
        return [module.conv2]
    if isinstance(module, Attention):
        return [module.to_out[0]]
    if isinstance(module, nn.ModuleList):  # changes of resolution have no residual branch
        return []
    raise ValueError(f"drop_path does not know the branches of {name}, a {type(module).__name__}; set drop_path to 0.")
