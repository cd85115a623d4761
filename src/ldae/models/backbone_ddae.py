"""DDAE as a backbone for dense tasks: fine and coarse maps of several blocks of a diffusion model, in one forward."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers.backbone_utils import BackboneMixin, BackboneType
from transformers.modeling_outputs import BackboneOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, auto_docstring, can_return_tuple

from .configuration_ddae import DDAEConfig
from .modeling_ddae import DDAEModel, DDAEPreTrainedModel
from .networks_ddae import ADAPTERS
from .taps_ddae import block_ends, choose_tap


@auto_docstring(
    custom_intro="""
    The network of a diffusion model as a backbone for dense tasks. It returns the maps of the taps in
    `config.out_features`, in their order, at one time step, and ends at the last of these taps.

    Heads that fuse levels, such as UperNet's, expect the finest first, as the default taps of a UNet are.
    """
)
class DDAEBackbone(BackboneMixin, DDAEPreTrainedModel):
    has_attentions = False

    def __init__(self, config: DDAEConfig):
        super().__init__(config)
        self.ddae = DDAEModel(self._extend_to_out_features())
        self.config = self.ddae.config  # with the tap and its width filled in
        shapes = self.ddae.feature_layers
        self.stage_names = list(shapes)
        self.num_features = [DDAEModel._width(shape) for shape in shapes.values()]
        if self.config.out_features is None:
            self.config.out_features = levels(shapes, str(self.config.feature_layer))
        self.post_init()

    def _extend_to_out_features(self) -> DDAEConfig:
        """Move the configuration's feature layer to the last of `out_features`, where these are given."""
        config = self.config
        if config.out_features is None:
            return config
        adapter: Any = ADAPTERS[config.denoiser_type]
        with torch.device("meta"):
            taps = adapter.taps(adapter.build(config))
        names = [choose_tap(taps, name, taps[-1]) for name in config.out_features]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"out_features={config.out_features} is invalid; give one or more different taps.")
        config.feature_layer = max(names, key=taps.index)
        return config

    def _init_transformers_backbone(self) -> None:
        self.backbone_type = BackboneType.TRANSFORMERS  # the stages are known once the network is built

    @property
    def out_features(self) -> list[str]:
        """The taps whose maps are returned, in their order."""
        return list(self.config.out_features or [])

    @out_features.setter
    def out_features(self, names: Sequence[str]) -> None:
        self._check(names)
        self.config.out_features = list(names)

    @property
    def out_indices(self) -> list[int]:
        """The indices of `out_features` in `stage_names`."""
        return [self.stage_names.index(name) for name in self.out_features]

    @out_indices.setter
    def out_indices(self, indices: Sequence[int]) -> None:
        self.out_features = [self.stage_names[index] for index in indices]

    @can_return_tuple
    @auto_docstring
    def forward(
        self, pixel_values: torch.Tensor, noise: torch.Tensor | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> BackboneOutput:
        r"""Compute the maps of the taps.

        Args:
            noise (`torch.FloatTensor`, *optional*): The noise eps to corrupt the input with at
                `config.feature_timestep`; by default the input stays clean.

        Returns:
            Feature maps `(batch_size, channels, height / stride, width / stride)`, one for each of `out_features`, for
            images of any size that is a multiple of the coarsest stride. `hidden_states` are the maps of all taps.

        Example:
            >>> import torch
            >>> from ldae import DDAEBackbone, DDAEConfig
            >>> unet = {"sample_size": 16, "block_out_channels": [8, 16], "norm_num_groups": 4, "layers_per_block": 1}
            >>> unet |= {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2}
            >>> backbone = DDAEBackbone(DDAEConfig(denoiser_config=unet, feature_layer="last")).eval()
            >>> backbone.out_features, backbone.channels
            (['up_blocks.1.resnets.1', 'up_blocks.0.resnets.1'], [8, 16])
            >>> [tuple(level.shape) for level in backbone(torch.zeros(1, 3, 32, 48)).feature_maps]
            [(1, 8, 32, 48), (1, 16, 16, 24)]
        """
        recorded = bool(kwargs.get("output_hidden_states", self.config.output_hidden_states))
        wanted = self.stage_names if recorded else self.out_features
        taps = self.ddae.features(pixel_values, wanted, noise=noise, pool="map", interpolate_pos_encoding=True)
        maps = {name: values[0] for name, values in taps.items()}  # (B, C, h, w)
        chosen: Any = tuple(maps[name] for name in self.out_features)
        hidden: Any = tuple(maps.values()) if recorded else None
        return BackboneOutput(feature_maps=chosen, hidden_states=hidden)

    def _check(self, names: Sequence[str]) -> None:
        unknown = [name for name in names if name not in self.stage_names]
        if unknown or not names or len(set(names)) < len(names):
            raise ValueError(
                f"out_features={list(names)} is invalid; give different ones of {', '.join(self.stage_names)}."
            )


def levels(shapes: dict[str, tuple[int, ...]], last: str) -> list[str]:
    """Choose one tap for each resolution of a network, the finest first, by the shapes of all taps.

    It is the last tap of the resolution on the way up, and only the `last` tap for a network without resolutions.

    Example:
        >>> levels({"mid_block.resnets.0": (8, 2, 2), "up_blocks.0.resnets.0": (8, 2, 2)}, "up_blocks.0.resnets.0")
        ['up_blocks.0.resnets.0']
    """
    if len(shapes[last]) != 3:
        return [last]
    ends = [name for name in block_ends(list(shapes)) if name.startswith(("mid_block.", "up_blocks."))]
    # A later tap of the same side replaces an earlier one.
    by_side = {shapes[name][-1]: name for name in [*ends, last]}
    return [by_side[side] for side in sorted(by_side, reverse=True)]


__all__ = ["DDAEBackbone"]
