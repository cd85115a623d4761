"""Fine-tuning block by block: learning-rate decay, drop path and LoRA over the blocks of an image classifier."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ldae.models.randomness_ldae import DROP_PATH, keyed_uniform
from ldae.models.taps_ddae import block_ends
from ldae.models.transformer_ldae import LDAELayer


_SAMPLER = re.compile(r"((?:down|up)_blocks\.\d+)\.(?:down|up)samplers$")
# Layers of transformer blocks (ours, then diffusers'), and the convolutions of a residual block.
LORA_TARGETS = "q_proj k_proj v_proj o_proj fc1 fc2 to_q to_k to_v to_out.0 net.0.proj net.2 conv1 conv2".split()


@dataclass(frozen=True)
class Block:
    """One block of an encoder; a residual block of a UNet with the attention and change of resolution after it."""

    modules: tuple[str, ...]  # their names in the classifier

    def holds(self, name: str) -> bool:
        """Return whether the block contains a parameter or a module of that name."""
        return any(name == module or name.startswith(f"{module}.") for module in self.modules)


def encoder_blocks(model: Any) -> list[Block]:
    """List the blocks of a classifier's encoder, first to last.

    They are transformer blocks, or the residual(+attention) blocks of a UNet, which its paper counts as layers.

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


class DropPath:
    """Stochastic depth: drops residual branches of single examples in training (Huang et al. 2016).

    Hooks on the last layer of each branch do it, of which the saved model holds no trace. The rate rises linearly from
    0 at the first block to `rate` at the last. The branches that an example loses depend only on the seed and on its
    position in the run.

    Args:
        model (`nn.Module`): A classifier.
        blocks (`list[Block]`): Blocks from [`encoder_blocks`].
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


def add_lora(model: Any, blocks: list[Block], rank: int) -> None:
    """Freeze a classifier except for its head, and add LoRA factors to the layers of some blocks (Hu et al. 2022).

    The product of the factors is not scaled (alpha = rank).

    Raises:
        ValueError: If peft is not installed, or no layer can have factors.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ValueError(
            f"lora_rank={rank} needs peft, which is not installed; pip install 'ldae[finetune]'."
        ) from error
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
        and any(name.endswith(f".{target}") for target in LORA_TARGETS)
        and any(block.holds(name) for block in blocks)
    ]
    if not names:
        raise ValueError(f"lora_rank={rank} needs a block that is not frozen; lower frozen_blocks.")
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=names), model)
    model.classifier.requires_grad_(True)


def merge_lora(model: Any) -> None:
    """Merge the LoRA factors of a classifier into plain layers, in place."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    for name, layer in layers:
        layer.merge()
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, layer.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config
