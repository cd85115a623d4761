"""Features as maps: every patch's own, at its place, where `features` has their mean."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from ldae.models.modeling_ddae import DDAEModel
from ldae.models.taps_ddae import map_of

from .features import Layer, encoder_of, evaluating, feature_choices, trunk_of


def feature_map(
    model: PreTrainedModel, pixels: torch.Tensor, *, layer: Layer | None = None, timestep: int | None = None
) -> torch.Tensor:
    """
    Features of every place of clean images, at one layer and one time step, without gradients.

    Args:
        model (`PreTrainedModel`): [`LDAEModel`], [`LDAEForPreTraining`], [`DDAEModel`] or [`DDAEForPreTraining`]. It is in
            evaluation mode meanwhile.
        pixels (`torch.Tensor` of shape `(B, C, H, W)`): Images in [-1, 1], of any size that is a multiple of the patch
            size (of a UNet's coarsest cell).
        layer (`int` or `str`, *optional*): A block, counted from 1, or a DDAE's tap; by default the model's feature layer.
        timestep (`int`, *optional*): By default the model's feature time step.

    Returns:
        `torch.FloatTensor` of shape `(B, F, h, w)`: an l-DAE's through its LayerNorm, a UNet's and a DiT's raw.

    Raises:
        ValueError: for a layer or time step that does not exist, another kind of model, or images of a wrong size.

    Example:

    ```python
    >>> import torch
    >>> from ldae import LDAEConfig, LDAEModel
    >>> from ldae.evaluation.maps import feature_map
    >>> model = LDAEModel(LDAEConfig.from_size("nano", image_size=16, patch_size=4, latent_dim=8))
    >>> feature_map(model, torch.zeros(2, 3, 16, 16), layer=1).shape
    torch.Size([2, 128, 4, 4])

    ```
    """
    encoder = encoder_of(model)
    if not isinstance(encoder, DDAEModel):
        encoder = trunk_of(encoder)
    layers, timesteps = ([layer] if layer is not None else None), ([timestep] if timestep is not None else None)
    chosen = feature_choices(encoder, layers, timesteps, noisy=False)
    with evaluating(encoder):
        (found,) = feature_maps(encoder, pixels, *chosen).values()
    return found


def feature_maps(
    model: Any,
    pixels: torch.Tensor,
    layers: Sequence[Any],
    timesteps: Sequence[int],
    noise: torch.Tensor | None = None,
) -> dict[tuple[Layer, int], torch.Tensor]:
    """
    Features of every place at several layers and time steps, by (layer, timestep).

    Args:
        model ([`LDAEModel`] or [`DDAEModel`]): In evaluation mode.
        pixels (`torch.Tensor` of shape `(B, C, H, W)`): Images in [-1, 1].
        layers, timesteps: As [`~ldae.evaluation.features.feature_choices`] gives them.
        noise (`torch.Tensor`, *optional*): The eps to corrupt the input with; clean by default.

    Returns:
        `dict`: for each of `layers` at each of `timesteps` a `torch.FloatTensor` `(B, F, h, w)`.
    """
    height, width = pixels.shape[2:]
    if isinstance(model, DDAEModel):
        taps: Any = model.features(pixels, layers, timesteps, noise, "none", interpolate_pos_encoding=True)
        return {
            (layer, t): map_of(taps[layer][i].float(), height, width)
            for layer in layers
            for i, t in enumerate(timesteps)
        }
    found = {}
    for t in timesteps:
        shared_t = torch.tensor([t], device=pixels.device)
        hidden = model(
            pixels, shared_t, noise, output_hidden_states=list(layers), interpolate_pos_encoding=True
        ).hidden_states
        for layer in layers:
            found[layer, t] = map_of(model.normalize(hidden[layer].float()), height, width)
    return {(layer, t): found[layer, t] for layer in layers for t in timesteps}
