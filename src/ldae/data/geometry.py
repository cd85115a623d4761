"""EDM's non-leaking augmentation: geometric transformations, and labels that tell the network which."""

import math

import torch
from torch.nn import functional as F

from ..models.randomness_ldae import GEOMETRY, GEOMETRY_SIZES, keyed_normal, keyed_uniform


SCALE_STD = 0.2  # of log2 of the scale, and of log2 of the anisotropic stretch
SHIFT_STD = 0.125  # of the translation, in sides of the image


def augment_geometry(
    pixels: torch.Tensor, positions: torch.Tensor, seed: int, *, probability: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Augment images, and describe the augmentation in labels for the network.

    With labels of zero the network then generates images without augmentation (Karras et al. 2022, App. F.2, with the
    settings of their public code for CIFAR-10). These are applied independently, each with `probability`: a vertical
    flip (to half of the chosen images), isotropic scaling (log2 normal, 0.2), rotation (uniform), anisotropic scaling
    (log2 normal, 0.2, along an axis that is horizontal half of the time and otherwise uniform) and translation
    (normal, 1/8 of the side). If `probability` is above 0, half of all images are flipped horizontally. Flips are
    exact; the rest is one bicubic resampling with reflected borders (the public code filters by wavelets), and images
    without any are not resampled. All draws depend only on `seed` and an example's position in the run.

    Args:
        pixels (`torch.FloatTensor` of shape `(b, C, S, S)`): Images in [-1, 1].
        positions (`torch.LongTensor` of shape `(b,)`): Position of each example in the run.
        seed (`int`): Seed of the run.
        probability (`float`): Probability of each transformation; Karras et al. use 0.12 for CIFAR-10.

    Returns:
        The images, and the labels, a `torch.FloatTensor` of shape `(b, 9)`: flips (0 or 1; horizontal, vertical), log2
        of the scale in standard deviations, cos - 1 and sin of the rotation, cos and sin of the axis times log2 of the
        stretch in standard deviations, and translation in standard deviations (x, y). They are zero for an unchanged
        image.

    Example:
    ```python
    >>> import torch
    >>> from ldae.data import augment_geometry
    >>> pixels, labels = augment_geometry(torch.zeros(4, 3, 8, 8), torch.arange(4), 0, probability=0.12)
    >>> pixels.shape, labels.shape
    (torch.Size([4, 3, 8, 8]), torch.Size([4, 9]))

    ```
    """
    uniform = keyed_uniform(seed, GEOMETRY, positions, 10)  # (b, 10)
    normal = keyed_normal(seed, GEOMETRY_SIZES, positions, 4)  # (b, 4)
    done = uniform[:, :5] < probability  # (b, 5)
    mirrored = (uniform[:, 5] < 0.5) & (probability > 0)
    upturned = done[:, 0] & (uniform[:, 6] < 0.5)
    scale = normal[:, 0] * done[:, 1]
    angle = (2 * uniform[:, 7] - 1) * math.pi * done[:, 2]
    stretch = normal[:, 1] * done[:, 3]
    axis = (2 * uniform[:, 8] - 1) * math.pi * (uniform[:, 9] < 0.5)
    shift = normal[:, 2:] * done[:, 4:]  # (b, 2)

    pixels = torch.where(mirrored[:, None, None, None], pixels.flip(-1), pixels)
    pixels = torch.where(upturned[:, None, None, None], pixels.flip(-2), pixels)
    moved = resample(pixels, scale * SCALE_STD, angle, stretch * SCALE_STD, axis, shift * SHIFT_STD)
    pixels = torch.where(done[:, 1:].any(dim=1)[:, None, None, None], moved, pixels)
    flips = torch.stack([mirrored, upturned], dim=1).float()
    turns = torch.stack([scale, angle.cos() - 1, angle.sin(), stretch * axis.cos(), stretch * axis.sin()], dim=1)
    return pixels, torch.cat([flips, turns, shift], dim=1)


def resample(
    pixels: torch.Tensor,
    log2_scale: torch.Tensor,
    angle: torch.Tensor,
    log2_stretch: torch.Tensor,
    axis: torch.Tensor,
    shift: torch.Tensor,
) -> torch.Tensor:
    """Scale, rotate, stretch and translate images, in this order, about their centres.

    Args:
        pixels: Images `(b, C, S, S)` in [-1, 1].
        log2_scale: log2 of the scale `(b,)`; values above 0 enlarge.
        angle: Rotation `(b,)` in radians, counter-clockwise.
        log2_stretch: log2 of the factor along the axis `(b,)`; across it, its inverse.
        axis: Direction of the stretch `(b,)` in radians.
        shift: To the right and down `(b, 2)`, in sides of the image.
    """
    # For each place in the result, find where its value is read: invert the steps, the last one first.
    factor = torch.stack([-log2_stretch, log2_stretch], dim=1).exp2()  # (b, 2)
    unstretch = _rotation(axis) @ torch.diag_embed(factor) @ _rotation(-axis)  # (b, 2, 2)
    back = (-log2_scale).exp2()[:, None, None] * (_rotation(angle) @ unstretch)  # (b, 2, 2)
    offset = back @ (-2 * shift)[:, :, None]  # (b, 2, 1); the sides of an image are 2 apart
    grid = F.affine_grid(torch.cat([back, offset], dim=2), list(pixels.shape), align_corners=False)  # (b, S, S, 2)
    moved = F.grid_sample(pixels, grid, mode="bicubic", padding_mode="reflection", align_corners=False)
    return moved.clamp(-1, 1)  # bicubic values overshoot


def _rotation(angle: torch.Tensor) -> torch.Tensor:
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([torch.stack([cos, -sin], dim=1), torch.stack([sin, cos], dim=1)], dim=1)  # (b, 2, 2)
