"""l-DAE as a backbone for dense tasks: maps of the chosen blocks' features."""

import torch
from transformers.backbone_utils import BackboneMixin, filter_output_hidden_states
from transformers.modeling_outputs import BackboneOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, auto_docstring, can_return_tuple

from .configuration_ldae import LDAEConfig
from .hidden_states_ldae import hidden_states_by_index
from .modeling_ldae import LDAEModel, LDAEPreTrainedModel


@auto_docstring(custom_intro="An l-DAE encoder as a backbone of dense tasks: maps of the chosen blocks' features.")
class LDAEBackbone(BackboneMixin, LDAEPreTrainedModel):
    def __init__(self, config: LDAEConfig):
        super().__init__(config)
        self.ldae = LDAEModel(config)
        self.num_features = [config.hidden_size] * (config.num_hidden_layers + 1)
        self.post_init()

    @hidden_states_by_index
    @can_return_tuple
    @filter_output_hidden_states
    @auto_docstring
    def forward(self, pixel_values: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> BackboneOutput:
        r"""
        Returns:
            Feature maps of shape `(batch_size, hidden_size, height / patch_size, width / patch_size)`, one for each of
            `out_features`, for images of any size that is a multiple of the patch size.
        """
        kwargs["output_hidden_states"] = True
        outputs = self.ldae(pixel_values, interpolate_pos_encoding=True, **kwargs)
        grid = [side // self.config.patch_size for side in pixel_values.shape[2:]]
        maps = tuple(
            self.ldae.normalize(hidden).transpose(1, 2).unflatten(2, grid)  # (B, C, H / P, W / P)
            for stage, hidden in zip(self.stage_names, outputs.hidden_states, strict=True)
            if stage in self.out_features
        )
        return BackboneOutput(feature_maps=maps, hidden_states=outputs.hidden_states, attentions=outputs.attentions)


__all__ = ["LDAEBackbone"]
