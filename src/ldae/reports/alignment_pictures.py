"""Figures of alignment and uniformity, by layer and time step, and against images seen."""

import torch
from matplotlib import colormaps
from matplotlib.figure import Figure

from ldae.evaluation.alignment import SphereScore


MEASURES = ("alignment", "uniformity")


def sphere_map(scores: list[SphereScore], of: str = "") -> Figure:
    """Draw alignment and uniformity by layer and time step, side by side; titles end with `of`, and dark is good."""
    layers = list(dict.fromkeys(score.layer for score in scores))
    timesteps = sorted({score.timestep for score in scores})
    figure = Figure(figsize=(3 + 1.3 * len(timesteps), 1.5 + 0.3 * len(layers)), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2, sharey=True), MEASURES, strict=True):
        values = torch.full((len(layers), len(timesteps)), float("nan"))
        for score in scores:
            values[layers.index(score.layer), timesteps.index(score.timestep)] = getattr(score, name)
        image = axes.imshow(values.numpy(), aspect="auto", cmap="viridis")
        low, high = values.min(), values.max()
        for row in range(len(layers)):
            for column in range(len(timesteps)):
                value = values[row, column].item()
                color = "black" if value > (low + high) / 2 else "white"
                axes.text(column, row, f"{value:.2g}", ha="center", va="center", fontsize=7, color=color)
        axes.set(
            xticks=range(len(timesteps)),
            xticklabels=timesteps,
            yticks=range(len(layers)),
            yticklabels=layers,
            xlabel="time step t",
            title=f"{name}{of}, lower is better",
        )
        axes.tick_params(labelsize=7)
        axes.title.set_fontsize(9)
        figure.colorbar(image, ax=axes)
    return figure


def sphere_course(scores_at: dict[int, list[SphereScore]], of: str = "") -> Figure:
    """Draw alignment and uniformity against images seen, with a column for each time step and a line for each layer.

    Args:
        scores_at (`dict[int, list[SphereScore]]`): Scores of each checkpoint, by images seen.
        of (`str`, defaults to `""`): Text after the names of both.
    """
    some = next(iter(scores_at.values()))
    layers = list(dict.fromkeys(score.layer for score in some))
    timesteps = sorted({score.timestep for score in some})
    images = sorted(scores_at)
    figure = Figure(figsize=(1.5 + 2.2 * len(timesteps), 4.6), layout="constrained")
    grid = figure.subplots(2, len(timesteps), squeeze=False, sharex=True, sharey="row")
    for place, (row, name) in enumerate(zip(grid, MEASURES, strict=True)):
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
            if place == 0:
                axes.set_title(f"t = {t}", fontsize=9)
            else:
                axes.set_xlabel("images seen", fontsize=8)
            axes.tick_params(labelsize=7)
        row[0].set_ylabel(f"{name}{of}")
    lines, names = grid[0][0].get_legend_handles_labels()
    figure.legend(lines, names, loc="outside right center", fontsize=7, frameon=False, title="block")
    return figure
