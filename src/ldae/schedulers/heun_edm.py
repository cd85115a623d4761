"""EDM's deterministic sampler (Karras et al. 2022, Algorithm 1 with S_churn = 0): Heun's method, of second order."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch


def heun_sample(
    denoise: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    levels: Sequence[float],
    progress: Callable[[Any], Iterable[tuple[float, float]]] = iter,
) -> torch.Tensor:
    """
    Follow dx / d sigma = (x - D(x; sigma)) / sigma from the first level to 0, whose step is Euler's.

    Args:
        denoise (`Callable`): D: noisy images `(B, ...)` and sigma `(1,)` to clean ones.
        x (`torch.Tensor` of shape `(B, ...)`): Images at the first level: standard normal noise times that.
        levels (`Sequence[float]`): Falling noise levels, without the 0 at their end.
        progress (`Callable`, *optional*): Wraps the steps, such as in a bar.

    Returns:
        `torch.Tensor` of shape `(B, ...)`, after 2 steps - 1 calls of `denoise`.

    Example:

    ```python
    >>> import torch
    >>> from ldae.schedulers.heun_edm import heun_sample
    >>> mean = torch.ones(1, 2)  # of data without variance, which is what is found
    >>> heun_sample(lambda x, sigma: mean, torch.zeros(1, 2), [2.0, 1.0])
    tensor([[1., 1.]])

    ```
    """
    for now, after in progress(list(zip(levels, [*levels[1:], 0.0], strict=True))):
        slope = (x - denoise(x, x.new_tensor([now]))) / now
        ahead = x + (after - now) * slope
        if after > 0:
            slope = (slope + (ahead - denoise(ahead, x.new_tensor([after]))) / after) / 2
            ahead = x + (after - now) * slope
        x = ahead
    return x
