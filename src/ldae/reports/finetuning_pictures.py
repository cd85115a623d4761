"""Figure of a fine-tuning run: its loss and its accuracy."""

import json
import os
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ldae.results import read_results


def draw_finetuning_pictures(folder: str | os.PathLike[str]) -> list[Path]:
    """Draw `pictures/training.png` of a fine-tuning run.

    Args:
        folder (`str` or path): The run's folder, with metrics.jsonl and, if it is finished, results.json.

    Returns:
        A list of the one file.
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
    """Draw the loss, and the accuracy of the raw and the averaged weights, against images seen.

    Args:
        records (`list[dict]`): Records of metrics.jsonl.
        final (`dict[str, float]`): Accuracy at the end on all images, by weights.
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
