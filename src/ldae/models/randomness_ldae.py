"""Counter-based random numbers: pure functions of a seed, a stream and an example's position in the run.

A draw depends on nothing else - not on the process, the micro-batch, the device or what was drawn before - so a run
can be split, accumulated, stopped and resumed without changing a single number.
"""

import math
from collections.abc import Sequence

import torch


# Streams keep the uses of one seed apart.
(
    TIMESTEPS,
    NOISE,
    AUGMENTATION,
    CLASS_DROPOUT,
    GEOMETRY,
    GEOMETRY_SIZES,
    RAND_AUGMENT,
    MIXING,
    DROP_PATH,
) = range(9)

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # 2^64 / golden ratio, as a signed 64-bit integer


def _shift_right(x: torch.Tensor, bits: int) -> torch.Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # logical shift: torch's own keeps the sign


def _mix(x: torch.Tensor) -> torch.Tensor:
    """Apply the finaliser of SplitMix64 (Steele, Lea, Flood 2014), a bijection of 64-bit integers."""
    x = (x ^ _shift_right(x, 30)) * (0xBF58476D1CE4E5B9 - 2**64)
    x = (x ^ _shift_right(x, 27)) * (0x94D049BB133111EB - 2**64)
    return x ^ _shift_right(x, 31)


def _keyed_bits(seed: int, stream: int, positions: torch.Tensor, count: int) -> torch.Tensor:
    number = seed * 8 + stream % 8 + (stream // 8 << 56)  # eight streams follow one another, further ones lie far away
    seed_key = _mix(torch.tensor([number], dtype=torch.int64, device=positions.device))
    keys = _mix(_mix(positions.long() + seed_key))  # (B,)
    counter = torch.arange(1, count + 1, dtype=torch.int64, device=positions.device)
    return _mix(keys[:, None] + counter * _GOLDEN)  # (B, count)


def keyed_uniform(seed: int, stream: int, positions: torch.Tensor, count: int) -> torch.Tensor:
    """Draw uniform numbers in [0, 1).

    Args:
        seed (`int`): Seed of the run.
        stream (`int`): The use of the numbers (`TIMESTEPS`, `NOISE`, ...).
        positions (`torch.LongTensor` of shape `(B,)`): Position in the run of each example.
        count (`int`): How many numbers for each example.

    Returns:
        `torch.FloatTensor` of shape `(B, count)` in float32, on the device of `positions`.

    Example:
        >>> import torch
        >>> from ldae.models.randomness_ldae import keyed_uniform
        >>> both = keyed_uniform(0, 0, torch.tensor([3, 7]), 2)
        >>> bool((keyed_uniform(0, 0, torch.tensor([7]), 2) == both[1]).all())
        True
    """
    return _shift_right(_keyed_bits(seed, stream, positions, count), 40).float() * 2.0**-24


def keyed_normal(seed: int, stream: int, positions: torch.Tensor, count: int) -> torch.Tensor:
    """Draw standard normal numbers, by the Box-Muller transform of the bits that [`keyed_uniform`] uses.

    Arguments and return value are those of [`keyed_uniform`]; no value exceeds 5.9 in magnitude (24 bits of radius).
    """
    bits = _keyed_bits(seed, stream, positions, (count + 1) // 2)
    u = (_shift_right(bits, 40).float() + 1) * 2.0**-24  # (0, 1]
    angle = (bits & 0xFFFFFF).float() * (2 * math.pi * 2.0**-24)
    radius = (-2 * u.log()).sqrt()
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :count]  # (B, count)


def keyed_noise(seed: int, positions: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Draw the noise eps `(B, *shape)` of examples, by [`keyed_normal`] of the stream `NOISE`."""
    return keyed_normal(seed, NOISE, positions, math.prod(shape)).view(-1, *shape)
