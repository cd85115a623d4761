"""Pictures of a run: the paper's Figures 3, 4, 7 and 8 for an l-DAE, denoising and schedule for a DDAE."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from transformers import AutoModelForPreTraining

from ldae.checkpoints import open_model
from ldae.data import ImageSource, iterate_once, prepare_images
from ldae.models.pretraining_ddae import DDAEForPreTraining
from ldae.models.pretraining_ldae import LDAEForPreTraining
from ldae.models.randomness_ldae import keyed_noise
from ldae.models.tokenizer_ldae import ConvVAETokenizer, PatchTokenizer
from ldae.reports.curves import training_figure
from ldae.results import read_metrics


def draw_run_pictures(folder: str | os.PathLike[str], source: ImageSource, images: int = 8) -> list[Path]:
    """Draw the pictures of a run's folder into its `pictures/`.

    Args:
        folder (`str` or path): A folder with a saved model for pre-training.
        source ([`~ldae.data.ImageSource`]): A source whose first readable images are shown.
        images (`int`, defaults to 8): Number of images.

    Returns:
        The files of the figures, and `training.png` if the run has a log.
    """
    folder = Path(folder)
    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    model = open_model(AutoModelForPreTraining, folder).eval()
    size = {"image_size": model.config.image_size, "num_channels": model.config.num_channels}
    batch = next(iterate_once(source, batch_size=images, **size))
    pixels = prepare_images(batch.images, batch.positions, 0, image_size=batch.images.shape[-1])  # (B, C, H, W)
    drawn = ldae_figures(model, pixels) if isinstance(model, LDAEForPreTraining) else ddae_figures(model, pixels)
    if records := read_metrics(folder):
        drawn["training.png"] = training_figure(records)
    for name, figure in drawn.items():
        FigureCanvasAgg(figure).print_png(pictures / name)
    return [pictures / name for name in drawn]


def ldae_figures(model: LDAEForPreTraining, pixels: torch.Tensor) -> dict[str, Figure]:
    """Draw an l-DAE's `denoising.png`, `noise.png`, `schedule.png` and, if it encodes by patch, `filters.png`."""
    drawn = {
        "denoising.png": denoising_figure(model, pixels),
        "noise.png": noise_figure(model, pixels),
        "schedule.png": schedule_figure(model),
    }
    if isinstance(model.ldae.tokenizer, PatchTokenizer):
        drawn["filters.png"] = filters_figure(model.ldae.tokenizer)
    return drawn


@torch.no_grad()
def ddae_figures(model: DDAEForPreTraining, pixels: torch.Tensor) -> dict[str, Figure]:
    """Draw a DDAE's `denoising.png` and, for DDPM, `schedule.png`, which shows where features are read."""
    b, steps, corruption = len(pixels), model.config.num_train_timesteps, model.ddae.corruption
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))
    rows = [("clean", pixels)]
    for t in sorted({int(share * steps) for share in (0.1, 0.25, 0.5)}):
        times = corruption.times_at(torch.full((b,), t))
        sigma = corruption.scales(times)[1][0].item()
        rows += [
            (f"noisy\nt = {t}\n$\\sigma$ = {sigma:.2f}", corruption.add_noise(pixels, noise, times)),
            ("denoised", model(pixels, times, noise).reconstruction),
        ]
    drawn = {"denoising.png": image_rows(rows)}
    if model.config.parametrization == "ddpm":
        drawn["schedule.png"], axes = _plot_schedule(corruption, "noise schedule")
        axes.axvline(model.config.feature_timestep or 0, color="gray", linestyle=":", label="features")
        axes.legend(frameon=False)
    return drawn


@torch.no_grad()
def denoising_figure(model: LDAEForPreTraining, pixels: torch.Tensor) -> Figure:
    """Draw Fig. 8: clean images `(B, C, H, W)`, noisy inputs and denoised outputs at three noise levels."""
    c, b, tokenizer = model.config, pixels.shape[0], model.ldae.tokenizer
    noise = keyed_noise(0, torch.arange(b), model.noise_shape)
    rows = [("clean", pixels)]
    levels = {min(c.num_train_timesteps - 1, int(share * c.num_train_timesteps)) for share in (0.25, 0.5, 0.9)}
    for t in sorted(levels if c.noise_schedule != "constant" else {0}):
        timesteps = torch.full((b,), t)
        noisy = model.ldae.corruption(tokenizer.encode_images(pixels), noise, timesteps)  # whatever the input space
        sigma = model.ldae.corruption.sigmas[t].item()
        rows += [
            (f"noisy\nt = {t}\n$\\sigma$ = {sigma:.2f}", tokenizer.decode_images(noisy, *pixels.shape[2:])),
            ("denoised", model(pixels, timesteps, noise).reconstruction),
        ]
    return image_rows(rows)


@torch.no_grad()
def noise_figure(model: LDAEForPreTraining, pixels: torch.Tensor) -> Figure:
    """Draw Fig. 7: clean images, with Gaussian noise on their pixels, and with noise on their latents."""
    sigma = (1 / 3) ** 0.5  # as in the figure
    tokenizer = model.ldae.tokenizer
    latents = tokenizer.encode_images(pixels) + sigma * keyed_noise(0, torch.arange(len(pixels)), model.noise_shape)
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))
    rows = [
        ("clean", pixels),
        (f"pixel noise\n$\\sigma$ = {sigma:.2f}", pixels + sigma * noise),
        (f"latent noise\n$\\sigma$ = {sigma:.2f}", tokenizer.decode_images(latents, *pixels.shape[2:])),
    ]
    return image_rows(rows)


@torch.no_grad()
def reconstruction_figure(tokenizer: PatchTokenizer | ConvVAETokenizer, pixels: torch.Tensor) -> Figure:
    """Draw images `(B, C, H, W)` in [-1, 1] above their reconstructions by a latent tokenizer on the same device."""
    decoded = tokenizer.decode_images(tokenizer.encode_images(pixels), *pixels.shape[2:])
    return image_rows([("original", pixels), ("decoded", decoded)])


def filters_figure(tokenizer: PatchTokenizer) -> Figure:
    """Draw Fig. 4: the first 64 rows of V as patches, for PCA in the order of falling variance."""
    v = tokenizer.components[:64]  # (d, D)
    v = v / v.abs().amax(dim=1, keepdim=True)
    p = tokenizer.patch_size
    tiles = v.reshape(len(v), tokenizer.num_channels, p, p)
    columns = min(8, len(tiles))
    return image_rows([("", tiles[i : i + columns]) for i in range(0, len(tiles), columns)])


def schedule_figure(model: LDAEForPreTraining) -> Figure:
    """Draw Fig. 3 with everything that a schedule sets: gamma_t^2, sigma_t and the loss weight lambda_t."""
    figure, axes = _plot_schedule(model.ldae.corruption, f"noise schedule: {model.config.noise_schedule}")
    axes.plot(model.objective.loss_weights.cpu().numpy(), label=r"$\lambda_t$ (loss weight)", linestyle="--")
    axes.legend(frameon=False)
    return figure


def _plot_schedule(corruption: Any, title: str) -> tuple[Figure, Any]:
    """Plot gamma_t^2 and sigma_t against t, and return the figure and its axes."""
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(corruption.gammas.cpu().numpy() ** 2, label=r"$\gamma_t^2$ (signal)")
    axes.plot(corruption.sigmas.cpu().numpy(), label=r"$\sigma_t$ (noise)")
    axes.set(xlabel="time step t", title=title)
    return figure, axes


def image_rows(rows: list[tuple[str, torch.Tensor]]) -> Figure:
    """Draw rows of images `(B, C, H, W)` in [-1, 1], with each row's name on the left."""
    columns = max(len(images) for _, images in rows)
    height, width = rows[0][1].shape[2:]
    gap = max(1, width // 12)
    canvas = np.ones((len(rows) * (height + gap) - gap, columns * (width + gap) - gap, 3), dtype=np.float32)
    for i, (_, images) in enumerate(rows):
        for j, image in enumerate(images.detach().cpu().float()):
            top, left = i * (height + gap), j * (width + gap)
            shown = ((image + 1) / 2).clamp(0, 1).permute(1, 2, 0)  # (H, W, C); one channel broadcasts to three
            canvas[top : top + height, left : left + width] = shown.numpy()
    figure = Figure(figsize=(columns + 1, len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(canvas, interpolation="nearest")
    centres = [i * (height + gap) + height / 2 for i in range(len(rows))]
    axes.set(xticks=[], yticks=centres, yticklabels=[name for name, _ in rows])
    axes.tick_params(length=0, labelsize=8)
    axes.set_frame_on(False)
    return figure
