"""First-order sampling along noise levels sigma: DDIM and DDPM's ancestral chain in the variables of Karras et al. 2022."""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch


def euler_sample(
    denoise: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    x: torch.Tensor,
    levels: Sequence[float],
    eta: float = 0.0,
    draw_noise: Callable[[], torch.Tensor] | None = None,
    progress: Callable[[Any], Iterable[tuple[float, float]]] = iter,
) -> torch.Tensor:
    """
    From level s to level r: x goes to D + r' (x - D) / s, and gets fresh noise of deviation r'' = eta (r/s) (s^2 - r^2)^(1/2),
    with r'^2 + r''^2 = r^2.

    With x = x_t / gamma_t and sigma = sigma_t / gamma_t it is DDIM (Song et al. 2021, arXiv 2010.02502, eq. 12 and 16): at
    eta = 0 Euler's step of the equation that [`~ldae.schedulers.heun_edm.heun_sample`] solves, at eta = 1 a draw of DDPM's
    posterior.

    Args:
        denoise (`Callable`): D: noisy images `(B, ...)` and sigma `(1,)` to clean ones.
        x (`torch.Tensor` of shape `(B, ...)`): Images at the first level: standard normal noise times that.
        levels (`Sequence[float]`): Falling noise levels, without the 0 at their end.
        eta (`float`, defaults to 0): From 0, deterministic, to 1, ancestral.
        draw_noise (`Callable`, *optional*): Standard normal noise of the shape of x, anew at each call; for eta > 0.
        progress (`Callable`, *optional*): Wraps the steps, such as in a bar.

    Returns:
        `torch.Tensor` of shape `(B, ...)`, after as many calls of `denoise` as there are levels.

    Raises:
        ValueError: for eta > 0 without `draw_noise`.

    Example:

    ```python
    >>> import torch
    >>> from ldae.schedulers.euler_edm import euler_sample
    >>> mean = torch.ones(1, 2)  # of data without variance, which is what is found
    >>> euler_sample(lambda x, sigma: mean, torch.zeros(1, 2), [2.0, 1.0])
    tensor([[1., 1.]])

    ```
    """
    if eta and draw_noise is None:
        raise ValueError(f"eta={eta} needs noise anew in every step; give draw_noise.")
    for now, after in progress(list(zip(levels, [*levels[1:], 0.0], strict=True))):
        denoised = denoise(x, x.new_tensor([now]))
        fresh = eta * after / now * math.sqrt(now**2 - after**2)
        kept = math.sqrt(after**2 - fresh**2)
        x = denoised + kept / now * (x - denoised)
        if fresh and draw_noise is not None:
            x = x + fresh * draw_noise()
    return x
