"""The picture of a fine-tuning run: its loss, and the accuracy that was measured meanwhile."""

import json
import os
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ldae.results import read_results


def draw_finetuning_pictures(folder: str | os.PathLike[str]) -> list[Path]:
    """
    Draw `pictures/training.png` of a fine-tuning run's folder.

    Args:
        folder (`str` or path): With its metrics.jsonl, and its results.json if it is finished.

    Returns:
        The file.
    """
    folder = Path(folder)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    final = {
        entry["protocol"]["weights"]: entry["value"]
        for entry in read_results(folder)
        if entry["protocol"]["name"] == "fine-tuning"
    }
    path = folder / "pictures" / "training.png"
    path.parent.mkdir(exist_ok=True)
    FigureCanvasAgg(finetuning_figure(records, final)).print_png(path)
    return [path]


def finetuning_figure(records: list[dict[str, Any]], final: dict[str, float]) -> Figure:
    """
    Loss, and accuracy with the weights as they train and with their average, against images seen.

    Args:
        records (`list[dict]`): Lines of metrics.jsonl.
        final (`dict[str, float]`): By weights, the accuracy at the end, on all images.
    """
    train = [r for r in records if r["event"] == "train"]
    measured = [r for r in records if r["event"] == "accuracy"]
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([r["images"] for r in train], [r["loss"] for r in train])
    left.set(xlabel="images seen", ylabel="loss", title="cross-entropy, augmented training images")
    for weights, value in final.items():
        seen = [*(r["images"] for r in measured), records[-1]["images"]]
        right.plot(seen, [*(r[weights] for r in measured), value], marker="o", markersize=3, label=weights)
    right.set(xlabel="images seen", ylabel="accuracy", title="evaluation images, all of them at the end")
    right.legend(frameon=False)
    return figure
