"""Curves: a run's log, its checkpoints and fine-tuning against images seen, and accuracy against the noise level."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ldae.evaluation.checkpoint_sweep import SweepPoint, best_points
from ldae.results import read_metrics, read_results


# Accuracies by their key in metrics.jsonl: those of the online probe, and those of fine-tuning by weights.
ACCURACIES = {
    "ridge_accuracy": "ridge probe",
    "knn_accuracy": "kNN",
    "best_ridge_accuracy": "ridge probe of the best block and t",
    "raw": "raw weights",
    "ema": "averaged weights",
}
PHONE_DPI = 160  # 800 pixels in width, which are sharp on a phone
# Colours and names of a checkpoint's accuracies; its distances have one colour.
SWEPT = {"ridge": ("#1f77b4", "ridge probe"), "knn": ("#2ca02c", "kNN"), "linear": ("#9467bd", "linear probe")}
DISTANCE_COLOR = "#d62728"


def training_figure(records: list[dict[str, Any]]) -> Figure:
    """Draw the loss and, if there are any, the online probe's accuracies side by side, from a run's log."""
    probes = measured(records)
    figure = Figure(figsize=(9 if probes else 5, 3.2), layout="constrained")
    panels = figure.subplots(1, 2 if probes else 1, squeeze=False)[0]
    _plot(panels[0], logged(records), {"loss": "loss"})
    panels[0].set(xlabel="images seen", ylabel="loss", yscale="log", title="denoising loss")
    if probes:
        _plot(panels[1], probes, ACCURACIES, marker="o")
        panels[1].set(xlabel="images seen", ylabel="accuracy", title="online probe, fixed subset")
        panels[1].legend(frameon=False)
    return figure


def loss_figure(records: list[dict[str, Any]]) -> Figure:
    """Draw the loss of at least one step above the learning rate, at a size that can be read on a phone."""
    figure = Figure(figsize=(5, 4.2), dpi=PHONE_DPI, layout="constrained")
    loss, rate = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    _plot(loss, logged(records), {"loss": "loss"})
    loss.set(ylabel="loss", yscale="log")
    _plot(rate, logged(records), {"learning_rate": "learning rate"}, color="tab:gray")
    rate.set(xlabel="images seen", ylabel="learning rate", ylim=(0, None))
    return figure


def accuracy_figure(records: list[dict[str, Any]]) -> Figure:
    """Draw at least one accuracy that was measured during training, at a size that can be read on a phone."""
    figure = Figure(figsize=(5, 3.2), dpi=PHONE_DPI, layout="constrained")
    axes = figure.subplots()
    _plot(axes, measured(records), ACCURACIES, marker="o")
    axes.set(xlabel="images seen", ylabel="accuracy")
    axes.legend(frameon=False)
    return figure


def logged(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the records of training steps."""
    return [r for r in records if r.get("event") == "train" and "loss" in r]


def measured(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the records with accuracies: those of the online probe, or of fine-tuning."""
    return [r for r in records if r.get("event") in ("probe", "accuracy")]


def _plot(axes: Any, records: list[dict[str, Any]], names: dict[str, str], **style: Any) -> None:
    """Plot the fields `names` of records, each with its label, where they are present."""
    for key, label in names.items():
        points = [(r["images"], r[key]) for r in records if key in r]
        if points:
            marker = "o" if len(points) == 1 else None
            axes.plot(*zip(*points, strict=True), label=label, **{"marker": marker, **style})


def draw_finetuning_pictures(folder: str | os.PathLike[str]) -> list[Path]:
    """Draw `pictures/training.png` of a fine-tuning run.

    Args:
        folder (`str` or path): The run's folder, with metrics.jsonl and, if it is finished, results.json.

    Returns:
        A list of the one file.
    """
    folder = Path(folder)
    records = read_metrics(folder)
    final = {
        entry["protocol"]["weights"]: entry["value"]
        for entry in read_results(folder)
        if entry["protocol"]["name"] == "fine-tuning" and entry["checkpoint"] == "."
    }
    path = folder / "pictures" / "training.png"
    path.parent.mkdir(exist_ok=True)
    FigureCanvasAgg(finetuning_figure(records, final)).print_png(path)
    return [path]


def finetuning_figure(records: list[dict[str, Any]], final: dict[str, float]) -> Figure:
    """Draw the loss, and the accuracy of the raw and the averaged weights, against images seen.

    Args:
        records (`list[dict]`): Records of metrics.jsonl.
        final (`dict[str, float]`): Accuracy at the end on all images, by weights.
    """
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    _plot(left, logged(records), {"loss": "loss"})
    left.set(xlabel="images seen", ylabel="loss", title="cross-entropy, augmented training images")
    at_end = {"images": records[-1]["images"], **final}
    _plot(right, [*measured(records), at_end], {name: name for name in final}, marker="o", markersize=3)
    right.set(xlabel="images seen", ylabel="accuracy", title="evaluation images, all of them at the end")
    right.legend(frameon=False)
    return figure


def checkpoint_course(points: list[SweepPoint]) -> Figure:
    """Draw checkpoints' test accuracies on the left axis and a distance on the right one, against images seen.

    The distance is FID, or KID without FID. A star marks the best checkpoint by each measure, chosen on held-out
    images.
    """
    best = best_points(points)
    accuracies = [name for name in best if name in SWEPT]
    distances = sorted(name for name in best if name not in SWEPT)[:1]  # FID before KID
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel="images seen", ylabel="test accuracy in %" if accuracies else "")
    lines = []

    def draw(on: Any, name: str, color: str, label: str, scale: float, style: str) -> None:
        star, course = best[name], [point for point in points if point.measure == name]
        on.plot([star.images_seen], [scale * star.value], marker="*", markersize=13, color=color, linestyle="none")
        x, y = [point.images_seen for point in course], [scale * point.value for point in course]
        lines.extend(on.plot(x, y, marker="o", markersize=3, linewidth=1.2, linestyle=style, color=color, label=label))

    for name in accuracies:
        draw(axes, name, *SWEPT[name], 100, "-")
    for name in distances:
        right = axes.twinx() if accuracies else axes
        draw(right, name, DISTANCE_COLOR, f"{name} (lower is better)", 1, "--")
        right.set_ylabel(name, color=DISTANCE_COLOR)
        right.tick_params(axis="y", colors=DISTANCE_COLOR)
    labels, above = [line.get_label() for line in lines], (0.5, 1)
    axes.legend(lines, labels, loc="lower center", bbox_to_anchor=above, ncols=len(lines), frameon=False, fontsize=8)
    return figure


def noise_curves(
    curves: dict[str, list[tuple[float, float | None]]],
    timesteps: Sequence[int],
    levels: Sequence[float],
    chance: float,
) -> Figure:
    """Draw accuracy in percent by time step, with a line and standard errors for each kind of classifier.

    Args:
        curves (`dict`): Mean and standard error at each time step, by the classifier's name.
        timesteps (`Sequence[int]`): The time steps.
        levels (`Sequence[float]`): sigma_t / gamma_t at each time step, for the upper axis.
        chance (`float`): Accuracy of guessing.
    """
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for name, scores in curves.items():
        errors = [0 if stderr is None else 100 * stderr for _, stderr in scores]
        axes.errorbar(timesteps, [100 * mean for mean, _ in scores], yerr=errors, marker="o", markersize=4, label=name)
    axes.axhline(100 * chance, color="gray", linestyle=":", label="chance")
    axes.set(xlabel="time step t", ylabel="test accuracy in %", ylim=(0, 102))
    axes.legend(frameon=False, fontsize=8)
    above = axes.secondary_xaxis("top")
    above.set_xticks(list(timesteps), [f"{level:.2g}" for level in levels], fontsize=7, rotation=45)
    above.set_xlabel(r"noise over signal, $\sigma_t / \gamma_t$", fontsize=8)
    return figure
