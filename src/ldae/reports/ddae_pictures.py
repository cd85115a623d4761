"""Figures of a DDAE's run: noisy images denoised, and its noise levels."""

import torch
from matplotlib.figure import Figure

from ldae.models.pretraining_ddae import DDAEForPreTraining
from ldae.reports.run_pictures import image_rows, plot_schedule


def ddae_figures(model: DDAEForPreTraining, pixels: torch.Tensor) -> dict[str, Figure]:
    """Draw `denoising.png` and, for DDPM, `schedule.png`. Pixels are `(B, C, H, W)`."""
    drawn = {"denoising.png": denoising_figure(model, pixels)}
    if model.config.parametrization == "ddpm":
        drawn["schedule.png"] = schedule_figure(model)
    return drawn


@torch.no_grad()
def denoising_figure(model: DDAEForPreTraining, pixels: torch.Tensor) -> Figure:
    """Draw clean images `(B, C, H, W)`, noisy inputs and denoised outputs at three noise levels."""
    b, steps = len(pixels), model.config.num_train_timesteps
    corruption = model.ddae.corruption
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))
    rows = [("clean", pixels)]
    for t in sorted({int(share * steps) for share in (0.1, 0.25, 0.5)}):
        timesteps = torch.full((b,), t)
        times = corruption.times_at(timesteps)
        noisy, denoised = corruption.add_noise(pixels, noise, times), model(pixels, times, noise).reconstruction
        sigma = corruption.scales(times)[1][0].item()
        rows += [(f"noisy\nt = {t}\n$\\sigma$ = {sigma:.2f}", noisy), ("denoised", denoised)]
    return image_rows(rows)


def schedule_figure(model: DDAEForPreTraining) -> Figure:
    """Draw gamma_t^2 (signal) and sigma_t (noise) at every time step, and where features are read."""
    figure, axes = plot_schedule(model.ddae.corruption, "noise schedule")
    axes.axvline(model.config.feature_timestep or 0, color="gray", linestyle=":", label="features")
    axes.legend(frameon=False)
    return figure
