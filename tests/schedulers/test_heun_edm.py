"""The Heun sampler against the exact solution for Gaussian data, whose ideal denoiser is known; its order and cost."""

import math

import pytest
import torch

from ldae.models.noise_ddae import noise_levels
from ldae.schedulers.heun_edm import heun_sample


MEAN, DEVIATION = 0.3, 0.5


def ideal(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """E[x_0 | x] of data N(MEAN, DEVIATION^2) under noise of sigma."""
    return (DEVIATION**2 * x + sigma**2 * MEAN) / (DEVIATION**2 + sigma**2)


def error(steps: int, sigma_max: float = 80.0) -> float:
    start = MEAN + torch.linspace(-2, 2, 5, dtype=torch.float64) * math.hypot(sigma_max, DEVIATION)
    exact = MEAN + (start - MEAN) * DEVIATION / math.hypot(sigma_max, DEVIATION)
    levels = noise_levels(steps, 0.002, sigma_max, 7.0).tolist()
    return (heun_sample(ideal, start, levels) - exact).abs().max().item()


def test_it_finds_the_exact_solution_of_gaussian_data():
    assert error(18) < 0.06  # of points that lie 2 apart at most
    assert error(256) < 5e-4


def test_it_is_of_second_order():
    ratios = [error(steps) / error(2 * steps) for steps in (32, 64)]
    assert all(3.2 < ratio < 4.8 for ratio in ratios), ratios


def test_it_calls_the_network_twice_a_step_but_in_the_last():
    seen = []

    def denoise(x, sigma):
        seen.append(sigma.item())
        return ideal(x, sigma)

    heun_sample(denoise, torch.zeros(1, dtype=torch.float64), [4.0, 2.0, 1.0])
    assert seen == [4.0, 2.0, 2.0, 1.0, 1.0]


def test_levels_are_those_of_diffusers():
    from diffusers import EDMEulerScheduler

    scheduler = EDMEulerScheduler()
    scheduler.set_timesteps(18)
    levels = noise_levels(18, 0.002, 80.0, 7.0)
    torch.testing.assert_close(levels, scheduler.sigmas[:-1], rtol=1e-4, atol=1e-5)
    assert levels[0].item() == pytest.approx(80) and levels[-1].item() == pytest.approx(0.002)
