"""The formulas of EDM (Karras et al. 2022, arXiv 2206.00364): preconditioning, loss weight, noise levels. Numbers of
equations are that paper's; sigma_d is the standard deviation of the data."""

import torch


def preconditioning(
    sigma: torch.Tensor, sigma_data: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    c_skip, c_out, c_in and c_noise of D(x; sigma) = c_skip x + c_out F(c_in x; c_noise) (eq. 7 and Table 1).

    Args:
        sigma (`torch.Tensor`): Noise levels, of any shape.
        sigma_data (`float`): sigma_d.

    Returns:
        Four tensors of the shape of `sigma`.
    """
    total = sigma**2 + sigma_data**2
    return sigma_data**2 / total, sigma * sigma_data / total.sqrt(), total.rsqrt(), sigma.log() / 4


def loss_weight(sigma: torch.Tensor, sigma_data: float) -> torch.Tensor:
    """lambda(sigma) = (sigma^2 + sigma_d^2) / (sigma sigma_d)^2 = 1 / c_out^2 (Table 1)."""
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


def noise_levels(steps: int, sigma_min: float, sigma_max: float, rho: float) -> torch.Tensor:
    """
    The levels of a sampling schedule, from `sigma_max` down to `sigma_min` (eq. 5), without the 0 after them.

    Returns:
        `torch.FloatTensor` of shape `(steps,)`, on the CPU.
    """
    share = torch.linspace(0, 1, steps, dtype=torch.float64, device="cpu")
    first, last = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return ((first + share * (last - first)) ** rho).float()
