"""Figure of accuracy and FID against images seen."""

from matplotlib.figure import Figure

from ldae.evaluation.checkpoint_sweep import SweepPoint, best_points


COLORS = {"ridge": "#1f77b4", "knn": "#2ca02c", "linear": "#9467bd"}
DISTANCE_COLOR = "#d62728"
NAMES = {"ridge": "ridge probe", "knn": "kNN", "linear": "linear probe"}


def checkpoint_course(points: list[SweepPoint]) -> Figure:
    """Draw test accuracies on the left axis and a distance on the right one, against images seen.

    The distance is FID, or KID without FID. A star marks the best checkpoint by each measure, chosen on held-out
    images.

    Args:
        points (`list[SweepPoint]`): Scores of at least one checkpoint.

    Returns:
        `matplotlib.figure.Figure`.
    """
    best = best_points(points)
    accuracies = [name for name in best if name in COLORS]
    distances = sorted(name for name in best if name not in COLORS)[:1]  # FID before KID
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel("images seen")
    lines = []
    for name in accuracies:
        lines += _draw(axes, points, name, best[name], COLORS[name], NAMES[name], 100)
    axes.set_ylabel("test accuracy in %" if accuracies else "")
    if distances:
        (name,) = distances
        right = axes.twinx() if accuracies else axes
        lines += _draw(right, points, name, best[name], DISTANCE_COLOR, f"{name} (lower is better)", 1, dashed=True)
        right.set_ylabel(name, color=DISTANCE_COLOR)
        right.tick_params(axis="y", colors=DISTANCE_COLOR)
    axes.legend(
        lines,
        [line.get_label() for line in lines],
        loc="lower center",
        bbox_to_anchor=(0.5, 1),
        ncols=len(lines),
        frameon=False,
        fontsize=8,
    )
    return figure


def _draw(axes, points, name, best, color, label, scale, dashed=False):  # type: ignore[no-untyped-def]
    """Draw the line of a measure, with its star."""
    chosen = [point for point in points if point.measure == name]
    x, y = [point.images_seen for point in chosen], [scale * point.value for point in chosen]
    style = "--" if dashed else "-"
    axes.plot([best.images_seen], [scale * best.value], marker="*", markersize=13, color=color, linestyle="none")
    return axes.plot(x, y, marker="o", markersize=3, linewidth=1.2, linestyle=style, color=color, label=label)
