"""Samplers along noise levels sigma, as in Karras et al. (2022): DDIM, ancestral sampling and Heun's method."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch


# D: noisy images (B, ...) and sigma (1,) to clean images.
Denoiser = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Progress = Callable[[Any], Iterable[tuple[float, float]]]


def euler_sample(
    denoise: Denoiser,
    x: torch.Tensor,
    levels: Sequence[float],
    eta: float = 0.0,
    draw_noise: Callable[[], torch.Tensor] | None = None,
    progress: Progress = iter,
) -> torch.Tensor:
    """Sample by first-order steps: DDIM, or DDPM's ancestral chain.

    A step from level s to level r moves x to D + r' (x - D) / s and adds fresh noise with standard deviation
    r'' = eta (r/s) (s^2 - r^2)^(1/2), where r'^2 + r''^2 = r^2. With x = x_t / gamma_t and sigma = sigma_t / gamma_t
    it is DDIM (Song et al. 2021, arXiv 2010.02502, eq. 12 and 16): with eta = 0 Euler's step for the equation that
    [`heun_sample`] solves, with eta = 1 a draw from DDPM's posterior.

    Args:
        denoise (`Callable`): D: noisy images `(B, ...)` and sigma `(1,)` to clean images.
        x (`torch.Tensor` of shape `(B, ...)`): Images at the first level: standard normal noise times that level.
        levels (`Sequence[float]`): Falling noise levels, without the final 0.
        eta (`float`, defaults to 0): From 0, deterministic, to 1, ancestral.
        draw_noise (`Callable`, *optional*): Draws standard normal noise of the shape of x; needed for eta > 0.
        progress (`Callable`, *optional*): Wraps the steps, for example in a progress bar.

    Returns:
        `torch.Tensor` of shape `(B, ...)`, after one call of `denoise` for each level.

    Raises:
        ValueError: If eta > 0 and there is no `draw_noise`.

    Example:
        >>> mean = torch.ones(1, 2)  # the denoised images of data without variance
        >>> euler_sample(lambda x, sigma: mean, torch.zeros(1, 2), [2.0, 1.0])
        tensor([[1., 1.]])
    """
    if eta and draw_noise is None:
        raise ValueError(f"eta={eta} needs fresh noise in every step; give draw_noise.")
    for now, after in progress(list(zip(levels, [*levels[1:], 0.0], strict=True))):
        denoised = denoise(x, x.new_tensor([now]))
        fresh = eta * after / now * math.sqrt(now**2 - after**2)
        kept = math.sqrt(after**2 - fresh**2)
        x = denoised + kept / now * (x - denoised)
        if fresh and draw_noise is not None:
            x = x + fresh * draw_noise()
    return x


def heun_sample(
    denoise: Denoiser, x: torch.Tensor, levels: Sequence[float], progress: Progress = iter
) -> torch.Tensor:
    """Sample by Heun's method of second order: EDM's deterministic sampler (Algorithm 1 with S_churn = 0).

    It follows dx / d sigma = (x - D(x; sigma)) / sigma from the first level to 0, with a step of Euler's at the end.

    The arguments are those of [`euler_sample`], and `denoise` is called twice for each level but the last.

    Example:
        >>> mean = torch.ones(1, 2)  # the denoised images of data without variance
        >>> heun_sample(lambda x, sigma: mean, torch.zeros(1, 2), [2.0, 1.0])
        tensor([[1., 1.]])
    """
    for now, after in progress(list(zip(levels, [*levels[1:], 0.0], strict=True))):
        slope = (x - denoise(x, x.new_tensor([now]))) / now
        ahead = x + (after - now) * slope
        if after > 0:
            slope = (slope + (ahead - denoise(ahead, x.new_tensor([after]))) / after) / 2
            ahead = x + (after - now) * slope
        x = ahead
    return x
