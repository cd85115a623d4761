"""The pictures of a DDAE's run: noisy images denoised, its noise levels, and the course of the training."""

import json
import os
from pathlib import Path

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ldae.data import ImageSource, iterate_once, prepare_images
from ldae.models.pretraining_ddae import DDAEForPreTraining
from ldae.reports.run_pictures import image_rows, training_figure


def draw_ddae_pictures(folder: str | os.PathLike[str], source: ImageSource, images: int = 8) -> list[Path]:
    """
    Draw the pictures of a run folder into its `pictures/`. Samples are drawn by `ldae generate`.

    Args:
        folder (`str` or path): With a saved [`DDAEForPreTraining`].
        source ([`~ldae.data.ImageSource`]): Its first images are shown.
        images (`int`, defaults to 8): How many.

    Returns:
        The files: `denoising.png`, of DDPM `schedule.png`, and, where it was logged, `training.png`.
    """
    folder = Path(folder)
    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    model = DDAEForPreTraining.from_pretrained(folder).eval()
    c = model.config
    batch = next(
        iterate_once(source, image_size=c.image_size, num_channels=c.num_channels, batch_size=images, limit=images)
    )
    pixels = prepare_images(batch.images, batch.positions, 0, image_size=batch.images.shape[-1])  # (B, C, H, W)
    drawn = {"denoising.png": denoising_figure(model, pixels)}
    if c.parametrization == "ddpm":
        drawn["schedule.png"] = schedule_figure(model)
    if (folder / "metrics.jsonl").is_file():
        records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        drawn["training.png"] = training_figure(records)
    for name, figure in drawn.items():
        FigureCanvasAgg(figure).print_png(pictures / name)
    return [pictures / name for name in drawn]


@torch.no_grad()
def denoising_figure(model: DDAEForPreTraining, pixels: torch.Tensor) -> Figure:
    """Clean images `(B, C, H, W)`, noisy inputs and what one prediction makes of them, at three noise levels."""
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
    """gamma_t^2 (signal) and sigma_t (noise) at every time step, and where features are read."""
    corruption = model.ddae.corruption
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(corruption.gammas.cpu().numpy() ** 2, label=r"$\gamma_t^2$ (signal)")
    axes.plot(corruption.sigmas.cpu().numpy(), label=r"$\sigma_t$ (noise)")
    axes.axvline(model.config.feature_timestep or 0, color="gray", linestyle=":", label="features")
    axes.set(xlabel="time step t", title="noise schedule")
    axes.legend(frameon=False)
    return figure
