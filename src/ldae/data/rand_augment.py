"""RandAugment on batched tensors, with operations drawn from each image's position in the run."""

import math
from collections.abc import Callable

import torch
from torch.nn import functional as F

from ..models.randomness_ldae import RAND_AUGMENT, keyed_uniform


# From images (n, C, H, W) in [0, 1], and the strength (at most 1) and sign of each, (n, 1, 1, 1), to images.
Operation = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def rand_augment(
    pixels: torch.Tensor,
    positions: torch.Tensor,
    seed: int,
    *,
    magnitude: float = 9.0,
    spread: float = 0.5,
    rounds: int = 2,
    probability: float = 0.5,
) -> torch.Tensor:
    """Apply RandAugment (Cubuk et al. 2020) as in the fine-tuning of masked autoencoders (l-DAE, App. B: (9, 0.5)).

    In each round one of 15 operations is drawn for each image and, with `probability`, applied at a magnitude that is
    normal around `magnitude` (of 10). All operations get stronger with the magnitude, also those that get weaker in
    the original. The draws depend only on `seed` and the image's position in the run. Pixels from outside the image
    are grey, and images are interpolated bilinearly.

    Args:
        pixels (`torch.FloatTensor` of shape `(b, C, H, W)`): Images in [-1, 1].
        positions (`torch.LongTensor` of shape `(b,)`): Position of each example in the run; on the CPU, so that
            nothing waits for an accelerator.
        seed (`int`): Seed of the run.
        magnitude (`float`, defaults to 9.0): Mean magnitude, from 0 to 10.
        spread (`float`, defaults to 0.5): Standard deviation of the magnitude.
        rounds (`int`, defaults to 2): Operations in a row.
        probability (`float`, defaults to 0.5): Share of the drawn operations that are applied.

    Returns:
        `torch.FloatTensor` of shape `(b, C, H, W)` in [-1, 1].
    """
    device = pixels.device
    drawn = keyed_uniform(seed, RAND_AUGMENT, positions.cpu(), 4 * rounds).view(-1, rounds, 4)  # (b, rounds, 4)
    images = (pixels + 1) / 2
    for which, coin, normal, sign in (drawn[:, index].unbind(1) for index in range(rounds)):  # (b,) each
        number = (which * len(OPERATIONS)).long()
        level = magnitude + spread * torch.special.ndtri(normal.clamp(1e-6, 1 - 1e-6))
        strength = (level / 10).clamp(0, 1)
        direction = torch.where(sign < 0.5, -1.0, 1.0)
        for index, operation in enumerate(OPERATIONS.values()):
            rows = ((number == index) & (coin < probability)).nonzero()[:, 0]
            if len(rows):
                settings = [values[rows, None, None, None].to(device) for values in (strength, direction)]
                rows = rows.to(device)
                images = images.index_copy(0, rows, operation(images[rows], *settings).clamp(0, 1))
    return images * 2 - 1


def _auto_contrast(x: torch.Tensor, strength: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)  # (n, C, 1, 1)
    return torch.where(high > low, (x - low) / (high - low).clamp(min=1e-6), x)


def _equalize(x: torch.Tensor, strength: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
    """Map each channel through its cumulative histogram of 256 values, in Pillow's integer arithmetic."""
    values = (x * 255).round().long().flatten(2)  # (n, C, H * W)
    counts = torch.zeros(*values.shape[:2], 256, dtype=torch.long, device=x.device)
    counts.scatter_add_(2, values, torch.ones_like(values))  # (n, C, 256)
    of_largest = counts.gather(2, values.amax(2, keepdim=True))
    step = (values.shape[2] - of_largest) // 255  # (n, C, 1)
    table = (counts.cumsum(2) - counts + step // 2) // step.clamp(min=1)
    equalized = table.gather(2, values).clamp(max=255).float() / 255
    return torch.where(step > 0, equalized, x.flatten(2)).view_as(x)


def _posterize(x: torch.Tensor, strength: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
    """Keep 4 to 0 of 8 bits."""
    width = 2 ** (4 + (strength * 4).long())
    return (x * 255).round().long().div(width, rounding_mode="floor").mul(width).float() / 255


def _grey(x: torch.Tensor) -> torch.Tensor:
    """Compute luminance `(n, 1, H, W)`."""
    if x.shape[1] == 1:
        return x
    return (x * x.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)


def _blend(other: torch.Tensor, x: torch.Tensor, strength: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
    """Move from `other` towards the image and beyond it, by a factor from 0.1 to 1.9."""
    return other + (1 + 0.9 * strength * sign) * (x - other)


def _sharpness(x: torch.Tensor, strength: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
    """Blend with a smoothed image, whose border is not smoothed."""
    channels = x.shape[1]
    kernel = x.new_tensor([[1, 1, 1], [1, 5, 1], [1, 1, 1]]).div(13).expand(channels, 1, 3, 3)
    smooth = x.clone()
    smooth[..., 1:-1, 1:-1] = F.conv2d(x, kernel, groups=channels)
    return _blend(smooth, x, strength, sign)


def _move(x: torch.Tensor, rows: list[list[torch.Tensor | float]]) -> torch.Tensor:
    """Read each point (X, Y) of the result, from -1 to 1, at the 2 x 3 matrix `rows` times (X, Y, 1) of the image."""
    like = x.new_zeros(len(x))
    theta = torch.stack([torch.stack([like + entry for entry in row], dim=1) for row in rows], dim=1)  # (n, 2, 3)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)  # (n, H, W, 2)
    return F.grid_sample(x - 0.5, grid, mode="bilinear", padding_mode="zeros", align_corners=False) + 0.5


def _rotate(x: torch.Tensor, strength: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
    angle = (strength * sign).flatten() * math.radians(30)
    return _move(x, [[angle.cos(), angle.sin(), 0.0], [-angle.sin(), angle.cos(), 0.0]])


# x: images, s: strength, d: sign, the direction. Images move by up to 45 % of the side, which has length 2.
OPERATIONS: dict[str, Operation] = {
    "auto_contrast": _auto_contrast,
    "equalize": _equalize,
    "invert": lambda x, s, d: 1 - x,
    "rotate": _rotate,
    "posterize": _posterize,
    "solarize": lambda x, s, d: torch.where(x < 1 - s, x, 1 - x),
    "solarize_add": lambda x, s, d: torch.where(x < 0.5, x + s * (110 / 255), x),
    "color": lambda x, s, d: _blend(_grey(x), x, s, d),
    "contrast": lambda x, s, d: _blend(_grey(x).mean((2, 3), keepdim=True), x, s, d),
    "brightness": lambda x, s, d: _blend(torch.zeros_like(x), x, s, d),
    "sharpness": _sharpness,
    "shear_x": lambda x, s, d: _move(x, [[1.0, 0.3 * (s * d).flatten(), 0.0], [0.0, 1.0, 0.0]]),
    "shear_y": lambda x, s, d: _move(x, [[1.0, 0.0, 0.0], [0.3 * (s * d).flatten(), 1.0, 0.0]]),
    "translate_x": lambda x, s, d: _move(x, [[1.0, 0.0, 0.9 * (s * d).flatten()], [0.0, 1.0, 0.0]]),
    "translate_y": lambda x, s, d: _move(x, [[1.0, 0.0, 0.0], [0.0, 1.0, 0.9 * (s * d).flatten()]]),
}
