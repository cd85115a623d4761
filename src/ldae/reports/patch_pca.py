"""Patch features as colours: their first three principal components as red, green and blue."""

import torch
from transformers import PreTrainedModel

from ldae.evaluation.encoder import Layer
from ldae.evaluation.features import feature_map


TAIL = (
    0.01  # share of the places that saturate at either end of a colour's range, so that outliers do not dim the rest
)
GREY = 0.5


def patch_pca_images(
    model: PreTrainedModel, pixels: torch.Tensor, layer: Layer | None = None, timestep: int | None = None
) -> torch.Tensor:
    """Colour patches by three principal components of their features, fitted to all of the images together.

    Equal colours in two images mean similar content to the model.

    Args:
        model (`PreTrainedModel`): An l-DAE or a DDAE.
        pixels (`torch.Tensor` of shape `(B, C, H, W)`): Images in [-1, 1], of any multiple of the patch size.
        layer (`int` or `str`, *optional*): A block, counted from 1, or a tap; by default the model's feature layer.
        timestep (`int`, *optional*): A time step; by default the model's feature time step.

    Returns:
        `torch.FloatTensor` of shape `(B, 3, h, w)` in [0, 1], on the CPU, with one colour for each patch. Components
        without variance are grey.

    Raises:
        ValueError: If the layer or the time step does not exist, or the model or the size of the images is unsuitable.

    Example:
        ```python
        >>> import torch
        >>> from ldae import LDAEConfig, LDAEModel
        >>> from ldae.reports.patch_pca import patch_pca_images
        >>> model = LDAEModel(LDAEConfig.from_size("nano", image_size=16, patch_size=4, latent_dim=8))
        >>> patch_pca_images(model, torch.rand(2, 3, 16, 16) * 2 - 1).shape
        torch.Size([2, 3, 4, 4])

        ```
    """
    features = feature_map(model, pixels, layer=layer, timestep=timestep).cpu()  # (B, F, h, w)
    return component_colours(features)


def component_colours(features: torch.Tensor) -> torch.Tensor:
    """Compute the first three principal components of feature maps, each stretched to [0, 1].

    Args:
        features (`torch.Tensor` of shape `(B, F, h, w)`): Feature maps; all places are fitted together.

    Returns:
        `torch.FloatTensor` of shape `(B, 3, h, w)`. The largest weight of each component is positive, so that equal
        features have equal colours on every machine.
    """
    b, _, h, w = features.shape
    places = features.double().movedim(1, -1).flatten(0, 2)  # (B * h * w, F)
    least = 1e-12 * places.square().sum(dim=1).mean()  # above the rounding error of constant features
    places = places - places.mean(dim=0)
    variances, directions = torch.linalg.eigh(places.T @ places / len(places))  # in columns, by rising variance
    directions = directions[:, -3:].flip(1)  # (F, up to 3)
    kept = variances[-3:].flip(0) > least
    largest = directions.abs().argmax(dim=0, keepdim=True)
    values = places @ (directions * directions.gather(0, largest).sign())  # (B * h * w, up to 3)
    low, high = torch.quantile(values, torch.tensor([TAIL, 1 - TAIL], dtype=values.dtype), dim=0)
    colours = torch.full((len(places), 3), GREY, dtype=torch.float64)
    scaled = ((values - low) / (high - low).clamp(min=1e-300)).clamp(0, 1)
    colours[:, : scaled.shape[1]] = torch.where(kept & (high > low), scaled, GREY)
    return colours.view(b, h, w, 3).movedim(-1, 1).float()
