"""The pictures of a run: the paper's Figures 3, 4, 7 and 8 for the model at hand, and the course of the training."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ldae.data import ImageSource, iterate_once, prepare_images
from ldae.models.corruption_ldae import draw_noise
from ldae.models.modeling_ldae import LDAEForPreTraining
from ldae.models.tokenizer_conv_ldae import ConvVAETokenizer
from ldae.models.tokenizer_ldae import PatchTokenizer


def draw_run_pictures(folder: str | os.PathLike[str], source: ImageSource, images: int = 8) -> list[Path]:
    """
    Draw the pictures of a run folder into its `pictures/`.

    Args:
        folder (`str` or path): With a saved [`LDAEForPreTraining`].
        source ([`~ldae.data.ImageSource`]): Its first images are shown.
        images (`int`, defaults to 8): How many.

    Returns:
        The files: `denoising.png`, `noise.png`, `schedule.png`, `filters.png` of a patch-wise tokenizer and, where it was
        logged, `training.png`.
    """
    folder = Path(folder)
    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    model = LDAEForPreTraining.from_pretrained(folder).eval()
    c = model.config
    batch = next(
        iterate_once(source, image_size=c.image_size, num_channels=c.num_channels, batch_size=images, limit=images)
    )
    pixels = prepare_images(batch.images, batch.positions, 0, image_size=batch.images.shape[-1])  # (B, C, H, W)
    drawn = {
        "denoising.png": denoising_figure(model, pixels),
        "noise.png": noise_figure(model, pixels),
        "schedule.png": schedule_figure(model),
    }
    if isinstance(model.ldae.tokenizer, PatchTokenizer):
        drawn["filters.png"] = filters_figure(model.ldae.tokenizer)
    if (folder / "metrics.jsonl").is_file():
        records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        drawn["training.png"] = training_figure(records)
    for name, figure in drawn.items():
        FigureCanvasAgg(figure).print_png(pictures / name)
    return [pictures / name for name in drawn]


@torch.no_grad()
def denoising_figure(model: LDAEForPreTraining, pixels: torch.Tensor) -> Figure:
    """Fig. 8: clean images, noisy inputs and denoised outputs at three noise levels. Pixels `(B, C, H, W)`."""
    c, b = model.config, pixels.shape[0]
    noise = draw_noise(c, torch.arange(b), seed=0)
    rows = [("clean", pixels)]
    levels = {min(c.num_train_timesteps - 1, int(share * c.num_train_timesteps)) for share in (0.25, 0.5, 0.9)}
    for t in sorted(levels if c.noise_schedule != "constant" else {0}):
        timesteps = torch.full((b,), t)
        sigma = model.ldae.corruption.sigmas[t].item()
        rows += [
            (f"noisy\nt = {t}\n$\\sigma$ = {sigma:.2f}", noisy_images(model, pixels, noise, timesteps)),
            ("denoised", model(pixels, timesteps, noise).reconstruction),
        ]
    return image_rows(rows)


@torch.no_grad()
def noise_figure(model: LDAEForPreTraining, pixels: torch.Tensor) -> Figure:
    """Fig. 7: clean images, Gaussian noise on their pixels, and on their latents shown by the inverse PCA."""
    c, b = model.config, pixels.shape[0]
    sigma = (1 / 3) ** 0.5  # the figure's
    eps = draw_noise(c, torch.arange(b), seed=0)
    tokenizer = model.ldae.tokenizer
    noisy = tokenizer.decode_images(tokenizer.encode_images(pixels) + sigma * eps, *pixels.shape[2:])
    rows = [
        ("clean", pixels),
        (f"pixel noise\n$\\sigma$ = {sigma:.2f}", pixels + sigma * torch.randn(pixels.shape, generator=_seeded())),
        (f"latent noise\n$\\sigma$ = {sigma:.2f}", noisy),
    ]
    return image_rows(rows)


def noisy_images(
    model: LDAEForPreTraining, pixels: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor
) -> torch.Tensor:
    """What the noisy latents at `timesteps` look like, `(B, C, H, W)`, whatever space the model's input is in."""
    tokenizer = model.ldae.tokenizer
    zt = model.ldae.corruption(tokenizer.encode_images(pixels), noise, timesteps)
    return tokenizer.decode_images(zt, *pixels.shape[2:])


@torch.no_grad()
def reconstruction_figure(tokenizer: PatchTokenizer | ConvVAETokenizer, pixels: torch.Tensor) -> Figure:
    """Originals over what the latent tokenizer gives back. Pixels `(B, C, H, W)` in [-1, 1], where the tokenizer is."""
    decoded = tokenizer.decode_images(tokenizer.encode_images(pixels), *pixels.shape[2:])
    return image_rows([("original", pixels), ("decoded", decoded)])


def filters_figure(tokenizer: PatchTokenizer, most: int = 64) -> Figure:
    """Fig. 4: the rows of V as patches; those of PCA by falling variance."""
    v = tokenizer.components[:most]  # (d, D)
    v = v / v.abs().amax(dim=1, keepdim=True)
    p = tokenizer.patch_size
    tiles = v.reshape(len(v), tokenizer.num_channels, p, p)
    columns = min(8, len(tiles))
    return image_rows([("", tiles[i : i + columns]) for i in range(0, len(tiles), columns)])


def schedule_figure(model: LDAEForPreTraining) -> Figure:
    """Fig. 3, with all that a schedule sets: gamma_t^2, sigma_t and the loss weight lambda_t."""
    corruption = model.ldae.corruption
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.subplots()
    axes.plot(corruption.gammas.cpu().numpy() ** 2, label=r"$\gamma_t^2$ (signal)")
    axes.plot(corruption.sigmas.cpu().numpy(), label=r"$\sigma_t$ (noise)")
    axes.plot(model.objective.loss_weights.cpu().numpy(), label=r"$\lambda_t$ (loss weight)", linestyle="--")
    axes.set(xlabel="time step t", title=f"noise schedule: {model.config.noise_schedule}")
    axes.legend(frameon=False)
    return figure


def training_figure(records: list[dict[str, Any]]) -> Figure:
    """Loss, and where it was measured the online probe's accuracies, against images seen."""
    train = [r for r in records if r.get("event") == "train"]
    probes = [r for r in records if r.get("event") == "probe"]
    figure = Figure(figsize=(9 if probes else 5, 3.2), layout="constrained")
    panels = figure.subplots(1, 2 if probes else 1, squeeze=False)[0]
    panels[0].plot([r["images"] for r in train], [r["loss"] for r in train])
    panels[0].set(xlabel="images seen", ylabel="loss", yscale="log", title="denoising loss")
    for name, label in (("ridge_accuracy", "ridge probe"), ("knn_accuracy", "kNN")) if probes else ():
        panels[1].plot([r["images"] for r in probes], [r[name] for r in probes], marker="o", label=label)
    if probes:
        panels[1].set(xlabel="images seen", ylabel="accuracy", title="online probe, fixed subset")
        panels[1].legend(frameon=False)
    return figure


def image_rows(rows: list[tuple[str, torch.Tensor]]) -> Figure:
    """Rows of images `(B, C, H, W)` in [-1, 1], each row with its name on the left, as one picture."""
    columns = max(len(images) for _, images in rows)
    height, width = rows[0][1].shape[2:]
    gap = max(1, width // 12)
    canvas = np.ones((len(rows) * (height + gap) - gap, columns * (width + gap) - gap, 3), dtype=np.float32)
    for i, (_, images) in enumerate(rows):
        for j, image in enumerate(images.detach().cpu().float()):
            top, left = i * (height + gap), j * (width + gap)
            shown = (
                ((image + 1) / 2).clamp(0, 1).permute(1, 2, 0).numpy()
            )  # (H, W, C); one channel broadcasts to three
            canvas[top : top + height, left : left + width] = shown
    figure = Figure(figsize=(columns + 1, len(rows)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(canvas, interpolation="nearest")
    centres = [i * (height + gap) + height / 2 for i in range(len(rows))]
    axes.set(xticks=[], yticks=centres, yticklabels=[name for name, _ in rows])
    axes.tick_params(length=0, labelsize=8)
    axes.set_frame_on(False)
    return figure


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)
