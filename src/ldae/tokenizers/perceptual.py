"""The perceptual loss: a distance between images in the features of a frozen, supervised network (Sec. 4.1)."""

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ldae.checkpoints import load_backbone


class PerceptualLoss(nn.Module):
    """Squared distance between images in the hidden states of a pre-trained network.

    The feature vector of each position is scaled to unit length; squared differences are summed over channels and
    averaged over positions, layers and images. This is LPIPS (Zhang et al. 2018, arXiv 1801.03924) without its learnt
    channel weights, for any supervised backbone of transformers.

    The network is not a submodule: it has no parameters to train, synchronize or save, and always stays in evaluation
    mode. It follows the module to its device and precision.

    Args:
        model (`str` or path): Folder or Hub id of a checkpoint of `AutoModel` with `hidden_states`, such as
            `"microsoft/resnet-50"`; pixels are normalized as its preprocessor_config.json says. Images are not
            resized; grey images are repeated for a network of three channels.

    Raises:
        ValueError: If it cannot be loaded or, in the forward pass, if the images have other channels.
    """

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, model: str | os.PathLike[str]):
        super().__init__()
        backbone, processor, _ = load_backbone(model, "perceptual_model")
        self.model_name = os.fspath(model)
        self._frozen = (backbone,)  # in a tuple, which nn.Module does not register
        scale = processor.rescale_factor * 255 if processor.do_rescale else 1.0  # of pixels in [0, 1]
        normalize = processor.do_normalize
        mean = torch.tensor(processor.image_mean if normalize else [0.0])
        std = torch.tensor(processor.image_std if normalize else [1.0])
        self.register_buffer("scale", 0.5 * scale / std.reshape(-1, 1, 1), persistent=False)  # (C, 1, 1)
        self.register_buffer("shift", ((0.5 * scale - mean) / std).reshape(-1, 1, 1), persistent=False)

    @property
    def backbone(self) -> Any:
        """The frozen network."""
        return self._frozen[0]

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "PerceptualLoss":
        self.backbone._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def forward(self, reconstruction: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return the distance.

        Args:
            reconstruction (`torch.Tensor` of shape `(B, C, H, W)`): Images in [-1, 1] that receive gradients.
            pixel_values (`torch.Tensor` of shape `(B, C, H, W)`): The originals in [-1, 1], which receive none.

        Returns:
            `torch.FloatTensor` of shape `()`.
        """
        with torch.no_grad():
            wanted = self._features(pixel_values)
        found = self._features(reconstruction)
        # (B, c, ...) of each layer: sum over channels, mean over images and positions
        distances = [(f - w).square().sum(dim=1).mean() for f, w in zip(found, wanted, strict=True)]
        return torch.stack(distances).mean()

    def _features(self, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        """Return the features of each hidden state, scaled to unit length, with channels in dimension 1."""
        wanted = getattr(self.backbone.config, "num_channels", pixel_values.shape[1])
        if pixel_values.shape[1] == 1 and wanted == 3:
            pixel_values = pixel_values.expand(-1, 3, -1, -1)
        if pixel_values.shape[1] != wanted:
            raise ValueError(
                f"perceptual_model={self.model_name!r} takes {wanted} channels, but the images have "
                f"{pixel_values.shape[1]}; choose a model that takes as many."
            )
        pixels = pixel_values * self.scale + self.shift  # as the network's own image processor gives them
        states = self.backbone(pixel_values=pixels, output_hidden_states=True).hidden_states
        # Convolutional networks give maps (B, c, h, w), transformers tokens (B, N, c).
        features = [(state if state.ndim == 4 else state.transpose(1, 2)).float() for state in states]
        return [f * (f.square().sum(dim=1, keepdim=True) + 1e-8).rsqrt() for f in features]
