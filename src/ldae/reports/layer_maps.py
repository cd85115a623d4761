"""Figures of scores by layer and time step: probes' accuracies, and alignment and uniformity."""

from collections.abc import Sequence
from typing import Any

import torch
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from ldae.evaluation.alignment import SphereScore
from ldae.evaluation.encoder import Layer
from ldae.evaluation.search import GridScore


MEASURES = ("alignment", "uniformity")


def heat_map(
    scores: list[GridScore],
    winner: GridScore,
    paper: tuple[Layer, int] | None = None,
    *,
    label: str = "test accuracy in %",
    scale: float = 100,
) -> Figure:
    """Draw scores by block and time step, clean and noisy inputs side by side.

    Args:
        scores (`list[GridScore]`): Their `test` is drawn.
        winner (`GridScore`): Has a solid frame.
        paper (`tuple`, *optional*): Block and time step of the paper's point, which has a dashed frame.
        label (`str`): What the numbers are, for the colour bar.
        scale (`float`, defaults to 100): What they are multiplied by.
    """
    panels = sorted({score.noisy for score in scores})
    layers, timesteps = _places(scores)
    width = 2.2 + len(panels) * max(2.4, 0.75 * len(timesteps))
    figure = Figure(figsize=(width, 1.4 + 0.34 * len(layers)), layout="constrained")
    values = torch.full((len(panels), len(layers), len(timesteps)), float("nan"))
    for score in scores:
        place = panels.index(score.noisy), layers.index(score.layer), timesteps.index(score.timestep)
        values[place] = scale * score.test
    finite = values[values.isfinite()]
    low, high = finite.min(), finite.max()
    row = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, panel, shown in zip(row, panels, values, strict=True):
        image = _draw_cells(
            axes, shown, (low, high), layers, timesteps, ".1f", "noisy input" if panel else "clean input"
        )
        frames = [((winner.layer, winner.timestep), "-")] if winner.noisy == panel else []
        if paper is not None and paper[0] in layers and paper[1] in timesteps:
            frames.append((paper, "--"))
        for (layer, timestep), style in frames:
            corner = timesteps.index(timestep) - 0.5, layers.index(layer) - 0.5
            axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="red", linewidth=2, linestyle=style))
    figure.colorbar(image, ax=figure.axes, label=label)
    return figure


def sphere_map(scores: list[SphereScore], of: str = "") -> Figure:
    """Draw alignment and uniformity by layer and time step, side by side; titles end with `of`, and dark is good."""
    layers, timesteps = _places(scores)
    figure = Figure(figsize=(3 + 1.3 * len(timesteps), 1.5 + 0.3 * len(layers)), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2, sharey=True), MEASURES, strict=True):
        values = torch.full((len(layers), len(timesteps)), float("nan"))
        for score in scores:
            values[layers.index(score.layer), timesteps.index(score.timestep)] = getattr(score, name)
        limits, title = (values.min(), values.max()), f"{name}{of}, lower is better"
        image = _draw_cells(axes, values, limits, layers, timesteps, ".2g", title)
        axes.title.set_fontsize(9)
        figure.colorbar(image, ax=axes)
    return figure


def sphere_course(scores_at: dict[int, list[SphereScore]], of: str = "") -> Figure:
    """Draw alignment and uniformity against images seen, with a column for each time step and a line for each layer.

    Args:
        scores_at (`dict[int, list[SphereScore]]`): Scores of each checkpoint, by images seen.
        of (`str`, defaults to `""`): Text after the names of both.
    """
    layers, timesteps = _places(next(iter(scores_at.values())))
    images = sorted(scores_at)
    figure = Figure(figsize=(1.5 + 2.2 * len(timesteps), 4.6), layout="constrained")
    grid = figure.subplots(2, len(timesteps), squeeze=False, sharex=True, sharey="row")
    for row, name in zip(grid, MEASURES, strict=True):
        for axes, t in zip(row, timesteps, strict=True):
            for index, layer in enumerate(layers):
                values = [
                    getattr(score, name)
                    for seen in images
                    for score in scores_at[seen]
                    if (score.layer, score.timestep) == (layer, t)
                ]
                color = colormaps["viridis"](0.9 * index / max(1, len(layers) - 1))
                axes.plot(images, values, marker="o", markersize=3, linewidth=1, color=color, label=str(layer))
            axes.tick_params(labelsize=7)
        row[0].set_ylabel(f"{name}{of}")
    for upper, lower, t in zip(*grid, timesteps, strict=True):
        upper.set_title(f"t = {t}", fontsize=9)
        lower.set_xlabel("images seen", fontsize=8)
    lines, names = grid[0][0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside right center", fontsize=7, frameon=False, title="block")
    return figure


def _places(scores: Sequence[GridScore | SphereScore]) -> tuple[list[Layer], list[int]]:
    """Return the layers in the order of the scores, and the time steps in theirs."""
    return list(dict.fromkeys(score.layer for score in scores)), sorted({score.timestep for score in scores})


def _draw_cells(
    axes: Any,
    values: torch.Tensor,
    limits: tuple[torch.Tensor, torch.Tensor],
    layers: list[Layer],
    timesteps: list[int],
    digits: str,
    title: str,
) -> Any:
    """Draw values `(L, T)` as colours between two limits, with their numbers."""
    low, high = limits
    image = axes.imshow(values.numpy(), aspect="auto", vmin=low, vmax=high, cmap="viridis")
    for row, shown in enumerate(values.tolist()):
        for column, value in enumerate(shown):
            color = "black" if value > (low + high) / 2 else "white"
            axes.text(column, row, f"{value:{digits}}", ha="center", va="center", fontsize=7, color=color)
    axes.set(
        xticks=range(len(timesteps)),
        xticklabels=timesteps,
        yticks=range(len(layers)),
        yticklabels=layers,
        xlabel="time step t",
        title=title,
    )
    axes.tick_params(labelsize=7)
    return image
