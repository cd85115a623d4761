"""Drop path (stochastic depth) for encoders that know nothing of it: hooks on the last layer of each residual branch."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ldae.models.randomness_ldae import DROP_PATH, keyed_uniform
from ldae.models.transformer_ldae import LDAELayer
from ldae.training.blocks import Block


class DropPath:
    """While a model trains, leaves out residual branches of single examples (Huang et al. 2016), and scales the others up.

    The rate rises linearly from 0 at the first block to `rate` at the last. Which branches an example loses depends on the
    seed and on its position in the run, and on nothing else. The model itself stays as it is: once trained, it is saved
    without a trace of this.

    Args:
        model (`nn.Module`): A classifier.
        blocks (`list[Block]`): As of [`~ldae.training.blocks.encoder_blocks`].
        rate (`float`): Of the last block, from 0 to below 1.
        first (`int`, defaults to 0): Blocks at the beginning that are left alone.

    Raises:
        ValueError: for a block whose branches are not known.
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
        """Choose the branches that the examples of the next forward keep.

        Args:
            positions (`torch.LongTensor` of shape `(b,)`): Position of each example in the run, on the model's device.
            seed (`int`): Seed of the run.
        """
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
    """The modules whose outputs are added to what a block was given."""
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
    if isinstance(module, nn.ModuleList):  # what changes the resolution has no residual branch
        return []
    raise ValueError(f"drop_path is not possible in {name}, a {type(module).__name__}; give drop_path 0.")
