"""The adversary of the convolutional VAE: a discriminator of patches, its loss and its weight (Sec. 4.1)."""

import math

import torch
from torch import nn


class PatchDiscriminator(nn.Module):
    """PatchGAN: strided 4 x 4 convolutions that score windows of an image (Isola et al. 2017, arXiv 1611.07004).

    It has GroupNorm, which keeps no running statistics, so that a forward pass does not change it.

    Args:
        num_channels (`int`): Channels of the images.
        image_size (`int`): Side of the images, in pixels, at least 8. The forward pass also takes larger ones.
        width (`int`, defaults to 64): Channels after the first layer; they double from layer to layer. Three layers
            are strided, or fewer on small images, so that the map of scores has at least 2 x 2.

    Raises:
        ValueError: If the images are too small.

    Example:
    ```python
    >>> import torch
    >>> PatchDiscriminator(3, image_size=32, width=8)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 1, 2, 2])

    ```
    """

    def __init__(self, num_channels: int, image_size: int, width: int = 64):
        super().__init__()
        if image_size < 8:
            raise ValueError(f"image_size={image_size} must be at least 8.")
        # The two convolutions of stride 1 that follow each reduce the map's side by one.
        strided = min(3, int(math.log2(image_size / 4)))
        widths = [width * 2**i for i in range(strided + 1)]
        self.layers = nn.Sequential(nn.Conv2d(num_channels, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2))
        for i in range(1, strided + 1):
            stride = 2 if i < strided else 1
            self.layers.extend(
                [
                    nn.Conv2d(widths[i - 1], widths[i], 4, stride=stride, padding=1, bias=False),
                    nn.GroupNorm(math.gcd(32, widths[i]), widths[i]),
                    nn.LeakyReLU(0.2),
                ]
            )
        self.layers.append(nn.Conv2d(widths[-1], 1, 4, padding=1))
        for module in self.layers:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Score images `(B, C, H, W)` by a map `(B, 1, h, w)`: above 0 for real ones."""
        return self.layers(pixel_values)


def hinge_loss(real_scores: torch.Tensor, fake_scores: torch.Tensor) -> torch.Tensor:
    """Return the discriminator's loss, (mean max(0, 1 - real) + mean max(0, 1 + fake)) / 2, in float32."""
    return 0.5 * ((1 - real_scores.float()).relu().mean() + (1 + fake_scores.float()).relu().mean())


def adaptive_weight(
    reconstruction_loss: torch.Tensor, generator_loss: torch.Tensor, last_weight: torch.Tensor
) -> torch.Tensor:
    """Return the weight of the generator's loss that balances its gradient with the reconstruction's.

    At the decoder's last weight it is ||grad reconstruction|| / (||grad generator|| + 1e-4), at most 1e4 (VQGAN, Esser
    et al. 2021, arXiv 2012.09841, eq. 7). It is detached; the graphs of both losses are kept.
    """
    (reconstruction,) = torch.autograd.grad(reconstruction_loss, last_weight, retain_graph=True)
    (generator,) = torch.autograd.grad(generator_loss, last_weight, retain_graph=True)
    return (reconstruction.float().norm() / (generator.float().norm() + 1e-4)).clamp(max=1e4).detach()
