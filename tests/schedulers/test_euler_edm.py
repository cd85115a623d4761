"""First-order sampling in sigma: the exact solution for Gaussian data, its spread under fresh noise, and DDIM's own steps."""

import math

import pytest
import torch
from diffusers import DDIMScheduler

from ldae.models.noise_ddae import noise_levels
from ldae.schedulers.euler_edm import euler_sample
from tests.schedulers.test_heun_edm import DEVIATION, MEAN, ideal


def error(steps: int) -> float:
    start = MEAN + torch.linspace(-2, 2, 5, dtype=torch.float64) * math.hypot(80, DEVIATION)
    exact = MEAN + (start - MEAN) * DEVIATION / math.hypot(80, DEVIATION)
    return (euler_sample(ideal, start, noise_levels(steps, 0.002, 80, 7.0).tolist()) - exact).abs().max().item()


def test_without_noise_it_is_of_first_order():
    ratios = [error(steps) / error(2 * steps) for steps in (64, 128)]
    assert all(1.8 < ratio < 2.2 for ratio in ratios), ratios
    assert error(1024) < 5e-3


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_it_ends_in_the_distribution_of_the_data(eta):
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(20_000, generator=generator, dtype=torch.float64)
    draw = lambda: torch.randn(20_000, generator=generator, dtype=torch.float64)  # noqa: E731
    found = euler_sample(ideal, 80 * noise, noise_levels(300, 0.002, 80, 7.0).tolist(), eta, draw)
    assert found.mean().item() == pytest.approx(MEAN, abs=0.012)
    assert found.std().item() == pytest.approx(DEVIATION, rel=0.03)
    correlation = torch.corrcoef(torch.stack([noise, found]))[0, 1].item()
    assert correlation > 0.999 if eta == 0 else correlation < 0.1 if eta == 1 else 0.1 < correlation < 0.9


@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_a_step_is_that_of_diffusers(eta):
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


def test_it_calls_the_network_once_a_step_and_asks_for_noise():
    seen = []

    def denoise(x, sigma):
        seen.append(sigma.item())
        return ideal(x, sigma)

    euler_sample(denoise, torch.zeros(1, dtype=torch.float64), [4.0, 2.0, 1.0])
    assert seen == [4.0, 2.0, 1.0]
    with pytest.raises(ValueError, match=r"eta=1.0 needs noise anew in every step"):
        euler_sample(ideal, torch.zeros(1), [1.0], eta=1.0)
