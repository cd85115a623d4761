"""Samplers along noise levels against the exact solution for Gaussian data: order, cost, spread, and DDIM's steps."""

import math

import pytest
import torch
from diffusers import DDIMScheduler

from ldae.models.noise_ddae import noise_levels
from ldae.schedulers.samplers import euler_sample, heun_sample


MEAN, DEVIATION = 0.3, 0.5


def ideal(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """E[x_0 | x] of data N(MEAN, DEVIATION^2) under noise of sigma."""
    return (DEVIATION**2 * x + sigma**2 * MEAN) / (DEVIATION**2 + sigma**2)


def error(sample, steps: int, sigma_max: float = 80.0) -> float:
    start = MEAN + torch.linspace(-2, 2, 5, dtype=torch.float64) * math.hypot(sigma_max, DEVIATION)
    exact = MEAN + (start - MEAN) * DEVIATION / math.hypot(sigma_max, DEVIATION)
    return (sample(ideal, start, noise_levels(steps, 0.002, sigma_max, 7.0).tolist()) - exact).abs().max().item()


def test_euler_without_noise_is_of_first_order():
    ratios = [error(euler_sample, steps) / error(euler_sample, 2 * steps) for steps in (64, 128)]
    assert all(1.8 < ratio < 2.2 for ratio in ratios), ratios
    assert error(euler_sample, 1024) < 5e-3


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_euler_ends_in_the_distribution_of_the_data(eta):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(20_000, generator=generator, dtype=torch.float64)
    draw = lambda: torch.randn(20_000, generator=generator, dtype=torch.float64)  # noqa: E731
    found = euler_sample(ideal, 80 * noise, noise_levels(300, 0.002, 80, 7.0).tolist(), eta, draw)
    assert found.mean().item() == pytest.approx(MEAN, abs=0.012)
    assert found.std().item() == pytest.approx(DEVIATION, rel=0.03)
    correlation = torch.corrcoef(torch.stack([noise, found]))[0, 1].item()
    assert correlation > 0.999 if eta == 0 else correlation < 0.1 if eta == 1 else 0.1 < correlation < 0.9


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_an_euler_step_is_that_of_diffusers(eta):
    """In x = x_t / gamma_t, at the levels sigma_t / gamma_t of its time steps."""
    scheduler = DDIMScheduler(beta_schedule="linear", clip_sample=False)
    scheduler.set_timesteps(20)
    times = scheduler.timesteps
    gammas = scheduler.alphas_cumprod.double().sqrt()
    levels = ((1 - gammas**2).sqrt() / gammas)[times].tolist()
    xt = start = torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(2)
    for t, sigma in zip(times, levels, strict=True):
        eps = (xt / gammas[t] - ideal(xt / gammas[t], torch.tensor(sigma))) / sigma
        xt = scheduler.step(eps, int(t), xt, eta=eta, generator=generator).prev_sample
    generator = torch.Generator().manual_seed(2)
    draw = lambda: torch.randn(7, generator=generator, dtype=torch.float64)  # noqa: E731
    ours = euler_sample(ideal, start / gammas[times[0]], levels, eta, draw)
    torch.testing.assert_close(ours, xt, rtol=1e-4, atol=1e-5)


def test_euler_calls_the_network_once_a_step_and_asks_for_noise():
    seen = []

    def denoise(x, sigma):
        seen.append(sigma.item())
        return ideal(x, sigma)

    euler_sample(denoise, torch.zeros(1, dtype=torch.float64), [4.0, 2.0, 1.0])
    assert seen == [4.0, 2.0, 1.0]
    with pytest.raises(ValueError, match=r"eta=1.0 needs fresh noise in every step"):
        euler_sample(ideal, torch.zeros(1), [1.0], eta=1.0)


def test_heun_finds_the_exact_solution_of_gaussian_data():
    assert error(heun_sample, 18) < 0.06  # of points that lie 2 apart at most
    assert error(heun_sample, 256) < 5e-4


def test_heun_is_of_second_order():
    ratios = [error(heun_sample, steps) / error(heun_sample, 2 * steps) for steps in (32, 64)]
    assert all(3.2 < ratio < 4.8 for ratio in ratios), ratios


def test_heun_calls_the_network_twice_a_step_but_in_the_last():
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
