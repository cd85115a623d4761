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


def ddpm_preconditioning(
    sigma: torch.Tensor, levels: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    The same four of a network F that predicts the noise of x_t = gamma_t x_0 + sigma_t eps, with gamma_t^2 + sigma_t^2 = 1:
    D(x; sigma) = x - sigma F(x / (1 + sigma^2)^(1/2); t), where sigma_t / gamma_t = sigma ("VP" in Table 1).

    c_noise is that t as a number with a fraction: between two of the T levels that the network was trained at, it is
    interpolated in log sigma, and beyond the first and the last it is theirs. (Rounding it would make D jump between
    levels, which costs a second-order sampler its order.)

    Args:
        sigma (`torch.Tensor`): Noise levels, of any shape.
        levels (`torch.Tensor` of shape `(T,)`): sigma_t / gamma_t, rising.

    Returns:
        Four tensors of the shape of `sigma`.

    Example:

    ```python
    >>> import torch
    >>> from ldae.models.preconditioning_ddae import ddpm_preconditioning
    >>> ddpm_preconditioning(torch.tensor([0.1, 2.0, 4.0, 1e3]), torch.tensor([1.0, 4.0, 5.0]))[3]
    tensor([0.0000, 0.5000, 1.0000, 2.0000])

    ```
    """
    after = torch.searchsorted(levels.to(sigma), sigma).clamp(1, len(levels) - 1)
    low, high = levels[after - 1].log(), levels[after].log()
    c_noise = after - 1 + ((sigma.log() - low) / (high - low)).clamp(0, 1)
    return torch.ones_like(sigma), -sigma, (1 + sigma**2).rsqrt(), c_noise


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
