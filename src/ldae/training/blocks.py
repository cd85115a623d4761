"""The blocks of an image classifier in the order in which they run: what is frozen, dropped, and trains at what rate."""

import re
from dataclasses import dataclass
from typing import Any

from ldae.models.taps_ddae import block_ends


_SAMPLER = re.compile(r"((?:down|up)_blocks\.\d+)\.(?:down|up)samplers$")


@dataclass(frozen=True)
class Block:
    """One block of an encoder.

    Args:
        modules (`tuple[str, ...]`): Names of its modules in the classifier. A residual block of a UNet goes with the
            attention that follows it, and with the change of resolution after that.
    """

    modules: tuple[str, ...]

    def holds(self, name: str) -> bool:
        """Whether a parameter, or a module, is the block's."""
        return any(name == module or name.startswith(f"{module}.") for module in self.modules)


def encoder_blocks(model: Any) -> list[Block]:
    """The blocks of a classifier's encoder, first to last.

    Args:
        model (`LDAEForImageClassification` or `DDAEForImageClassification`): The classifier.

    Returns:
        `list[Block]`: transformer blocks; of a UNet what its paper counts as layers, residual(+attention) blocks.

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
    """How deep a parameter lies: 0 for embeddings, i + 1 for those of block i, `len(blocks) + 1` for the classifier.

    Args:
        name (`str`): The parameter's.
        blocks (`list[Block]`): As of [`encoder_blocks`].
    """
    if name.startswith("classifier."):
        return len(blocks) + 1
    return next((index + 1 for index, block in enumerate(blocks) if block.holds(name)), 0)
