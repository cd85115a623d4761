"""Curves of a run's log: loss, learning rate and accuracies against images seen."""

from typing import Any

from matplotlib.figure import Figure


# Accuracies by their key in metrics.jsonl: those of the online probe, and those of fine-tuning by weights.
ACCURACIES = {
    "ridge_accuracy": "ridge probe",
    "knn_accuracy": "kNN",
    "best_ridge_accuracy": "ridge probe of the best block and t",
    "raw": "raw weights",
    "ema": "averaged weights",
}
PHONE_DPI = 160  # 800 pixels in width, which are sharp on a phone


def training_figure(records: list[dict[str, Any]]) -> Figure:
    """Draw the loss and, if there are any, the online probe's accuracies side by side.

    Args:
        records (`list[dict]`): Records of metrics.jsonl.
    """
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
    """Draw the loss above the learning rate, at a size that can be read on a phone.

    Args:
        records (`list[dict]`): Records of metrics.jsonl, with at least one of a training step.
    """
    figure = Figure(figsize=(5, 4.2), dpi=PHONE_DPI, layout="constrained")
    loss, rate = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    _plot(loss, logged(records), {"loss": "loss"})
    loss.set(ylabel="loss", yscale="log")
    _plot(rate, logged(records), {"learning_rate": "learning rate"}, color="tab:gray")
    rate.set(xlabel="images seen", ylabel="learning rate", ylim=(0, None))
    return figure


def accuracy_figure(records: list[dict[str, Any]]) -> Figure:
    """Draw the accuracies that were measured during training, at a size that can be read on a phone.

    Args:
        records (`list[dict]`): Records of metrics.jsonl, with at least one of a measurement.
    """
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
            axes.plot(
                *zip(*points, strict=True), label=label, **{"marker": "o" if len(points) == 1 else None, **style}
            )
