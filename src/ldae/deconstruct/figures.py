"""The charts of the report, ours beside the paper's, each drawn like the figure or table that it follows."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ldae.deconstruct.collect import Summary, VariantResults
from ldae.models.configuration_ldae import LDAEConfig
from ldae.models.corruption_ldae import noise_schedule_tables
from ldae.reports.paper_figures import (
    BY_BLOCK,
    BY_DIMENSION,
    BY_TIMESTEP,
    PATCH_DIM,
    TOTAL_BLOCKS,
    PaperStep,
)
from ldae.reports.run_pictures import image_rows


OURS, PAPER, INK = "#2463a6", "#a9b0b8", "#30343a"
COLOURS = {"conv_vae": "#8a5a44", "vae": "#c1622d", "ae": "#3d8f5f", "pca": "#2463a6", "pixel": "#7a7f87"}
LABELS = {"conv_vae": "conv VAE", "vae": "patch VAE", "ae": "patch AE", "pca": "patch PCA", "pixel": "pixels"}


def trajectory_figure(
    rows: Sequence[tuple[str, str, Summary | None, PaperStep | None]],
    separators: Sequence[int] = (),
    at_paper: Sequence[Summary | None] = (),
) -> Figure:
    """Draw the trajectory (Fig. 6) as bars, a row a line, ours on the left and the paper's on the right.

    Args:
        rows: The number of each row, its step in words, our accuracy and the paper's figures.
        separators (`Sequence[int]`): Lines that begin a group of steps.
        at_paper (`Sequence[Summary | None]`): Our accuracies at the recipe's own point (t = 10), drawn as diamonds.
    """
    figure = Figure(figsize=(5.8, 0.8 + 0.29 * len(rows)), layout="constrained")
    names, left, right = figure.subplots(1, 3, sharey=True, width_ratios=(1.5, 1, 1))
    for i, (number, step, summary, _) in enumerate(rows):
        names.text(0.05, i, number, ha="right", va="center", fontsize=8.5, color="#6b727b")
        names.text(0.09, i, step, ha="left", va="center", fontsize=8.5, color=INK)
        if summary is None:
            axes_then_data = left.get_yaxis_transform()
            left.text(0.02, i, "not run", transform=axes_then_data, va="center", fontsize=8, color="#8a9099")
    ours = [(i, 100 * s.mean, 100 * (s.stderr or 0)) for i, (_, _, s, _) in enumerate(rows) if s is not None]
    paper = [(i, step.accuracy, 0.0) for i, (_, _, _, step) in enumerate(rows) if step is not None]
    own = [(i, 100 * s.mean) for i, s in enumerate(at_paper) if s is not None]
    _bars(left, ours, OURS, dict(own))
    if own:
        low, high = left.get_xlim()
        places, values = zip(*own, strict=True)
        left.plot(values, places, "D", color="white", markeredgecolor=INK, markersize=4, label="at t = 10", zorder=4)
        left.set_xlim(min(low, 5 * math.floor((min(values) - 1) / 5)), max(high, max(values) + 1))
    _bars(right, paper, PAPER)
    left.set_ylim(len(rows) - 0.4, -0.6)
    left.set_title("ours (◇ at t = 10)" if own else "ours", fontsize=10, loc="left", color=OURS, fontweight="bold")
    right.set_title("paper (ImageNet)", fontsize=10, loc="left", color="#6b727b", fontweight="bold")
    names.set(xlim=(0, 1), yticks=[])
    names.set_axis_off()
    for axes in (left, right):
        axes.tick_params(length=0, labelsize=8, labelleft=False)
        axes.set_xlabel("linear probe, top-1 in %", fontsize=8, color=INK)
        for side in ("top", "right", "bottom"):
            axes.spines[side].set_visible(False)
    for i in separators:
        for axes in (names, left, right):
            axes.axhline(i - 0.5, color="#d5d9de", linewidth=0.8, clip_on=False)
    return figure


def dimensions_figure(sweep: Sequence[VariantResults], patch_dim: int) -> Figure:
    """Draw accuracy against the latent dimension d of a token, of D = `patch_dim`, by tokenizer (Tab. 2, Fig. 5)."""
    figure = Figure(figsize=(6.6, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    ours: dict[str, dict[int, Summary]] = {}
    for result in sweep:
        if result.accuracy is not None and result.variant.tokenizer and result.variant.dimension:
            ours.setdefault(result.variant.tokenizer, {})[result.variant.dimension] = result.accuracy
    for tokenizer, points in ours.items():
        _measured(left, dict(sorted(points.items())), label=LABELS.get(tokenizer, tokenizer), **_line(tokenizer))
    for tokenizer, by_dimension in BY_DIMENSION.items():
        right.plot(list(by_dimension), list(by_dimension.values()), label=LABELS[tokenizer], **_line(tokenizer))
    for axes, title, full in ((left, "ours", patch_dim), (right, "paper (ImageNet)", PATCH_DIM)):
        axes.set_xscale("log", base=2)
        axes.set_xlabel(f"latent dimension d of a token (of {full})", fontsize=8)
        axes.set_title(title, fontsize=10, loc="left", fontweight="bold", color=INK)
        axes.xaxis.set_major_formatter("{x:.0f}")
        _plain(axes)
        axes.legend(frameon=False, fontsize=7)
    left.set_ylabel("linear probe, top-1 in %", fontsize=8)
    return figure


def blocks_figure(blocks: dict[int, Summary], encoder: int, total: int) -> Figure:
    """Draw accuracy against the block that features are read after (App. A), and the paper's, its 24 blocks scaled.

    `encoder` is the number E of blocks in the encoder, `total` that of all blocks.
    """
    figure, axes, other = _with_paper_axis("block after which features are read")
    _measured(axes, blocks, label="ours", color=OURS)
    scaled = [block * total / TOTAL_BLOCKS for block in BY_BLOCK]
    other.plot(scaled, list(BY_BLOCK.values()), ":", color="#7d858e", marker=".", label="paper, 9 to 15 of 24 blocks")
    axes.axvline(encoder, color="#d5d9de", linewidth=1, zorder=0)
    axes.set_xticks(sorted(blocks))
    _legend(axes, other)
    return figure


def timesteps_figure(timesteps: dict[str, dict[int, Summary]]) -> Figure:
    """Draw accuracy against the time step of the features, with clean and noisy input (App. A), and the paper's."""
    figure, axes, other = _with_paper_axis("time step t of 1000")
    for given, colour in (("clean", OURS), ("noisy", "#c1622d")):
        if given in timesteps:
            _measured(axes, timesteps[given], label=f"ours, {given} input", color=colour)
        paper = BY_TIMESTEP[given]
        other.plot(list(paper), list(paper.values()), ":", color=colour, marker=".", label=f"paper, {given} input")
    _legend(axes, other)
    return figure


def schedules_figure(num_timesteps: int, beta_start: float, beta_end: float) -> Figure:
    """Draw the signal's share gamma_t^2 over t (Fig. 3) for DDPM's schedule and the one linear in gamma^2."""
    figure = Figure(figsize=(4.6, 2.9), layout="constrained")
    axes = figure.subplots()
    for name, label, colour in (
        ("linear_beta", "DDPM (row 0)", "#c1622d"),
        ("linear_gamma2", "linear in $\\gamma^2$ (row 4)", OURS),
    ):
        schedule: Any = {"num_train_timesteps": num_timesteps, "beta_start": beta_start, "beta_end": beta_end}
        config = LDAEConfig(noise_schedule=name, feature_timestep=0, **schedule)
        gammas, _ = noise_schedule_tables(config)
        axes.plot(gammas.numpy() ** 2, label=label, color=colour)
    axes.set_xlabel("time step t", fontsize=8)
    axes.set_ylabel("$\\gamma_t^2$", fontsize=10)
    _plain(axes)
    axes.legend(frameon=False, fontsize=8)
    return figure


def filters_figure(filters: Sequence[tuple[str, torch.Tensor]]) -> Figure:
    """Draw the first 16 filters, rows of V, of patch-wise tokenizers below each other (Fig. 4).

    Args:
        filters: The name of each tokenizer, and V as tiles `(d, C, P, P)`.
    """
    rows: list[tuple[str, torch.Tensor]] = []
    for name, tiles in filters:
        shown = tiles[:16] / tiles[:16].abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-12)
        rows += [(name if i == 0 else "", line) for i, line in enumerate(shown.split(8))]
    return image_rows(rows)


def _bars(
    axes: Axes, bars: Sequence[tuple[int, float, float]], colour: str, markers: Mapping[int, float] | None = None
) -> None:
    """Draw horizontal bars at (line, value, error), with their values beside them, clear of the line's marker."""
    if not bars:
        return
    low, high = min(value for _, value, _ in bars), max(value + error for _, value, error in bars)
    # Steps of a few points would be invisible on an axis from zero; the axis shows where it begins.
    begin = max(0.0, 5 * np.floor((low - 0.35 * max(high - low, 5)) / 5))
    axes.set_xlim(begin, high + 0.3 * (high - begin))
    for at, value, error in bars:
        axes.barh(at, value, height=0.66, color=colour)
        if error:
            axes.errorbar(value, at, xerr=error, fmt="none", ecolor=INK, elinewidth=1, capsize=2)
        end = max(value + error, (markers or {}).get(at, 0) + 0.02 * (high - begin))
        axes.text(end + 0.02 * (high - begin), at, f"{value:.1f}", va="center", fontsize=8.5, color=INK)


def _line(tokenizer: str) -> dict[str, Any]:
    return {"color": COLOURS.get(tokenizer, INK), "marker": "o", "markersize": 4, "linewidth": 1.4}


def _measured(axes: Axes, points: Mapping[int, Summary], **look: Any) -> None:
    means, errors = [100 * s.mean for s in points.values()], [100 * (s.stderr or 0) for s in points.values()]
    axes.errorbar(list(points), means, yerr=errors, **{"marker": "o", "markersize": 4, **look})


def _with_paper_axis(xlabel: str) -> tuple[Figure, Axes, Axes]:
    """Create a figure with our axis on the left and, for dotted lines, the paper's on the right."""
    figure = Figure(figsize=(4.6, 3.0), layout="constrained")
    axes = figure.subplots()
    other = axes.twinx()
    axes.set_xlabel(xlabel, fontsize=8)
    axes.set_ylabel("ours, top-1 in %", fontsize=8)
    other.set_ylabel("paper (ImageNet), top-1 in %", fontsize=8, color="#6b727b")
    _plain(axes)
    other.tick_params(labelsize=8, colors="#6b727b")
    for side in ("top", "left"):
        other.spines[side].set_visible(False)
    return figure, axes, other


def _legend(axes: Axes, other: Axes) -> None:
    handles = [*axes.get_legend_handles_labels()[0], *other.get_legend_handles_labels()[0]]
    labels = [*axes.get_legend_handles_labels()[1], *other.get_legend_handles_labels()[1]]
    axes.figure.legend(handles, labels, frameon=False, fontsize=7, loc="outside lower center", ncols=2)


def _plain(axes: Axes) -> None:
    axes.tick_params(labelsize=8)
    axes.grid(axis="y", color="#eceef0", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
