"""MixUp and CutMix with label smoothing, of pairs of neighbours in the run."""

import torch
from scipy.special import betaincinv
from torch.nn import functional as F

from ..models.randomness_ldae import MIXING, keyed_uniform


def mix_examples(
    pixels: torch.Tensor,
    labels: torch.Tensor,
    positions: torch.Tensor,
    seed: int,
    *,
    num_classes: int,
    mixup: float = 0.8,
    cutmix: float = 1.0,
    label_smoothing: float = 0.1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mix the examples at positions 2k and 2k + 1 of the run (App. B of l-DAE: MixUp 0.8, CutMix 1.0).

    If both are enabled, each pair gets one of the two with equal probability. MixUp (Zhang et al. 2018) adds lambda
    times an image and 1 - lambda times its neighbour; CutMix (Yun et al. 2019) pastes a box of the neighbour that
    covers 1 - lambda of the area before it is cut at the edges. lambda is drawn from Beta(a, a), by a function of
    `seed` and the pair's position. Targets are mixed by the share of the pixels. Neighbours lie in the same
    micro-batch, so the division of a batch over processes makes no difference.

    Args:
        pixels (`torch.FloatTensor` of shape `(b, C, H, W)`): Images at the positions `2k, 2k + 1, ..., 2k + b - 1`.
        labels (`torch.LongTensor` of shape `(b,)`): Their classes.
        positions (`torch.LongTensor` of shape `(b,)`): Position of each example in the run; on the CPU, so that
            nothing waits for an accelerator.
        seed (`int`): Seed of the run.
        num_classes (`int`): Number K of classes.
        mixup (`float`, defaults to 0.8): The a of MixUp; 0 disables it.
        cutmix (`float`, defaults to 1.0): The a of CutMix; 0 disables it.
        label_smoothing (`float`, defaults to 0.1): Share of the target that is spread over all classes.

    Returns:
        The images `(b, C, H, W)`, and the targets `(b, K)`, whose rows sum to 1.

    Raises:
        ValueError: If positions do not come in pairs.
    """
    targets = F.one_hot(labels, num_classes).float() * (1 - label_smoothing) + label_smoothing / num_classes  # (b, K)
    if not mixup and not cutmix:
        return pixels, targets
    positions = positions.cpu()
    first = positions[::2]  # (b / 2,)
    if len(positions) % 2 or bool((first % 2).any()) or bool((positions[1::2] != first + 1).any()):
        raise ValueError(f"positions={positions.tolist()} must be pairs 2k, 2k + 1; give batches of an even size.")
    which, quantile, row, column = keyed_uniform(seed, MIXING, first, 4).unbind(1)  # (b / 2,) each
    is_cut = which < (0.5 if mixup and cutmix else float(cutmix > 0))
    lam = torch.where(is_cut, _beta(quantile, cutmix), _beta(quantile, mixup))
    drawn = torch.stack([is_cut.float(), lam, row, column]).to(pixels.device, non_blocking=True)
    share = _share_of_own(drawn, *pixels.shape[2:])
    lam = share.mean((2, 3))  # (b / 2, 1), for the part of a box inside the image
    return _mixed(pixels, share), _mixed(targets, lam)


def _mixed(values: torch.Tensor, share: torch.Tensor) -> torch.Tensor:
    """Mix each pair with weights `share` and `1 - share`; values `(b, ...)`, shares `(b / 2, ...)`."""
    pairs = values.unflatten(0, (-1, 2))  # (b / 2, 2, ...)
    share = share[:, None]
    return (share * pairs + (1 - share) * pairs.flip(1)).flatten(0, 1)


def _share_of_own(drawn: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Compute each image's own share of the pixels in a pair, `(n, 1, H, W)`.

    It is lambda everywhere for MixUp, 0 in the box and 1 outside for CutMix. `drawn` `(4, n)` holds for each pair 1 if
    a box is pasted, lambda, and the row and column of the box's centre, from 0 to 1.
    """
    is_cut, lam, row, column = drawn[:, :, None, None, None].unbind(0)  # (n, 1, 1, 1) each
    half_side = (1 - lam).sqrt() / 2
    rows = (torch.arange(height, device=drawn.device)[:, None] + 0.5) / height  # (H, 1), centres of pixels
    columns = (torch.arange(width, device=drawn.device)[None, :] + 0.5) / width  # (1, W)
    in_box = ((rows - row).abs() < half_side) & ((columns - column).abs() < half_side)  # (n, 1, H, W)
    return torch.where(is_cut > 0, (~in_box).float(), lam.expand_as(in_box))


def _beta(quantile: torch.Tensor, a: float) -> torch.Tensor:
    """Turn uniform draws into draws of Beta(a, a); with a = 0 the mixing is disabled and they are not used."""
    if a in (0, 1):
        return quantile
    drawn = betaincinv(a, a, quantile.double().numpy())
    return torch.from_numpy(drawn).to(quantile)
