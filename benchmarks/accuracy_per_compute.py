"""Compare the accuracy of l-DAE, DDAE and transformers' masked autoencoder at equal CPU time.

All three train on the same data with the same batch, and are scored by the same probes. Each method trains for 1, 4
and 16 times `--base_seconds` of CPU time on one thread; every budget is a complete run with its own warm-up and
cosine. The methods take their steps in turn, so that a busy machine slows all of them alike.

Probes of frozen features score them: ridge regression with all labels and with ten a class (mean of five draws), and
nearest neighbours. Block and time step are chosen by ridge regression on a held-out tenth of the first
`--search_images` training images. The baselines are the untrained networks, searched in the same way, and raw pixels.

Each finished cell (method, budget, seed) is written to results.json at once; the same command continues with the
missing ones.

    python benchmarks/accuracy_per_compute.py --dataset FOLDER_OF_PARQUET --output_dir runs/accuracy_per_compute
"""

import argparse
import dataclasses
import json
import os
import platform
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import torch
from contenders import METHODS, Images, Method, Trained, Training, train_together
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ldae.data import DataConfig, iterate_once, open_probe_images
from ldae.evaluation.knn import knn_accuracy
from ldae.evaluation.metrics import mean_and_stderr
from ldae.evaluation.protocol import split_holdout
from ldae.evaluation.ridge import few_shot_ridge, fit_ridge_grid
from ldae.files import write_whole


BUDGETS = (1, 4, 16)
SHOTS, DRAWS, NEIGHBOURS = 10, 5, 20
PROBES = {"ridge": "ridge, all labels", "few_shot": f"ridge, {SHOTS} a class", "knn": "kNN"}
STYLES = {"l-DAE": ("#0072B2", "o"), "DDAE": ("#D55E00", "s"), "ViTMAE": ("#009E73", "^"), "pixels": ("#555555", "")}
DASHES = {"l-DAE": (0, (5, 2)), "DDAE": (0, (3, 1, 1, 1)), "ViTMAE": (0, (1, 1)), "pixels": (0, (8, 3))}
# Settings that all cells share: cells with other values cannot be compared.
SETTINGS = "dataset base_seconds train_images test_images search_images image_size rates".split()


def load_images(options: argparse.Namespace) -> tuple[Images, Images]:
    """Decode the training and test images into memory."""
    parts = []
    counts = (options.train_images, options.test_images)
    for source, count in zip(open_probe_images(DataConfig(options.dataset)), counts, strict=True):
        batches = list(iterate_once(source, image_size=options.image_size, batch_size=1024, limit=count))
        if any(batch.labels is None for batch in batches):
            raise ValueError(f"dataset={options.dataset!r} has no labels, which probes need; choose another.")
        parts.append(Images(torch.cat([b.images for b in batches]), torch.cat([b.labels for b in batches])))
    return parts[0], parts[1]


def search(method: Method, images: Images) -> tuple[Any, int | None, float]:
    """Choose a block and a time step by ridge regression on a held-out tenth of the images.

    Returns:
        `tuple`: block, time step, and the held-out accuracy.
    """
    columns = method.columns()
    features = method.features(images, columns)  # (n, F, C)
    fitted, held = split_holdout(len(features))
    parts = [(features[index], images.labels[index]) for index in (fitted, held)]
    held_out = fit_ridge_grid(*parts, parts[1], num_classes=int(images.labels.max()) + 1).held_out
    best = int(held_out.argmax())
    return *columns[best], held_out[best].item()


def probe(
    train_x: torch.Tensor, train_y: torch.Tensor, test_x: torch.Tensor, test_y: torch.Tensor
) -> dict[str, float]:
    """Score features `(n, C)` by each of `PROBES`."""
    fitted, held = split_holdout(len(train_y))
    parts = [(train_x[fitted, None], train_y[fitted]), (train_x[held, None], train_y[held]), (test_x[:, None], test_y)]
    few = few_shot_ridge(train_x, train_y, test_x, test_y, shots=SHOTS, draws=DRAWS)
    return {
        "ridge": fit_ridge_grid(*parts, num_classes=int(train_y.max()) + 1).test.item(),
        "few_shot": sum(few) / len(few),
        "knn": knn_accuracy(train_x, train_y, test_x, test_y, k=NEIGHBOURS),
    }


def score_cell(
    method: Method, trained: Trained | None, train_images: Images, test_images: Images, searched: int
) -> dict[str, Any]:
    """Choose a method's features and score them.

    Returns:
        `dict`: a cell of results.json, without its key.
    """
    began = time.process_time()
    block, timestep, held_out = search(method, train_images.first(searched))
    x, test_x = (method.features(part, [(block, timestep)])[:, 0] for part in (train_images, test_images))
    scores = probe(x, train_images.labels, test_x, test_images.labels)
    return {
        **dataclasses.asdict(trained or Trained(0.0, 0, float("nan"))),
        "loss": trained.loss if trained else None,
        "weights": sum(weight.numel() for weight in method.model.parameters()),
        "block": block,
        "timestep": timestep,
        "held_out": held_out,
        "probe_cpu_seconds": time.process_time() - began,
        **scores,
    }


class ResultsFile:
    """Finished cells in results.json, with the settings that they share."""

    def __init__(self, folder: Path, options: argparse.Namespace):
        self.path = folder / "results.json"
        settings = {name: getattr(options, name) for name in SETTINGS}
        self.about = {
            "settings": settings,
            "command": shlex.join(["python", *sys.argv]),
            "hardware": f"{platform.machine()}, {platform.processor() or platform.system()}, 1 thread",
            "torch": torch.__version__,
        }
        before = self._read().get("settings", settings)
        for name in SETTINGS:
            if before.get(name) != settings[name]:
                raise ValueError(
                    f"{name}={settings[name]!r} differs from {before.get(name)!r} in {self.path}; give that value, or "
                    "another --output_dir."
                )

    @property
    def cells(self) -> list[dict[str, Any]]:
        """Read the cells on disk."""
        return self._read().get("cells", [])

    def add(self, cell: dict[str, Any]) -> None:
        """Add a cell to the file."""
        content = {**self.about, "cells": [*self.cells, cell]}
        write_whole(self.path, json.dumps(content, indent=2) + "\n")

    def _read(self) -> dict[str, Any]:
        return json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}


def grouped(cells: list[dict[str, Any]]) -> dict[tuple[str, int], list[dict[str, Any]]]:
    """Group cells by (method, budget), baselines (budget 0) first; within a group they differ by seed."""
    groups: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for cell in sorted(cells, key=lambda c: (c["budget"], [*METHODS, "pixels"].index(c["method"]))):
        groups.setdefault((cell["method"], cell["budget"]), []).append(cell)
    return groups


def markdown_table(cells: list[dict[str, Any]], base_seconds: float) -> str:
    """Write test accuracies in per cent, mean over seeds and standard error, as a markdown table."""
    lines = [
        "| CPU seconds | method | seeds | images seen | block @ t | " + " | ".join(PROBES.values()) + " |",
        "|" + "---|" * (5 + len(PROBES)),
    ]
    for (method, budget), group in grouped(cells).items():
        seconds = f"{budget * base_seconds:g}" if budget else "0"
        seen = sum(cell["images_seen"] for cell in group) / len(group)
        choices = ", ".join(dict.fromkeys(_choice(cell) for cell in group))
        scores = []
        for name in PROBES:
            mean, stderr = mean_and_stderr([100 * cell[name] for cell in group])
            scores.append(f"{mean:.1f}" + ("" if stderr is None else f" ± {stderr:.1f}"))
        name = method if budget or method == "pixels" else f"{method}, untrained"
        lines.append(f"| {seconds} | {name} | {len(group)} | {seen:,.0f} | {choices} | " + " | ".join(scores) + " |")
    return "\n".join(lines) + "\n"


def _choice(cell: dict[str, Any]) -> str:
    if cell["block"] is None:
        return "-"
    block = str(cell["block"]).removeprefix("transformer_blocks.")
    # diffusers counts from 0
    number = int(block) + 1 if isinstance(cell["block"], str) else int(block)
    return str(number) if cell["timestep"] is None else f"{number} @ {cell['timestep']}"


def figure_of(cells: list[dict[str, Any]], base_seconds: float) -> Figure:
    """Draw accuracy over CPU seconds: one line per method with its range over seeds, baselines dashed."""
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    groups = grouped(cells)
    for axes, (probe_name, title) in zip(figure.subplots(1, len(PROBES)), PROBES.items(), strict=True):
        for method, (color, marker) in STYLES.items():
            course = {budget: group for (name, budget), group in groups.items() if name == method}
            values = {budget: [100 * cell[probe_name] for cell in group] for budget, group in course.items()}
            floor = values.pop(0, None)
            if floor:
                label = "raw pixels" if method == "pixels" else f"{method}, untrained"
                axes.axhline(sum(floor) / len(floor), color=color, linestyle=DASHES[method], linewidth=1, label=label)
            if values:
                seconds = [budget * base_seconds for budget in values]
                means = [sum(scores) / len(scores) for scores in values.values()]
                axes.plot(seconds, means, color=color, marker=marker, label=method)
                low, high = ([pick(scores) for scores in values.values()] for pick in (min, max))
                axes.fill_between(seconds, low, high, color=color, alpha=0.2, linewidth=0)
        ticks = sorted({budget * base_seconds for _, budget in groups if budget})
        axes.set(xscale="log", title=title, xlabel="CPU seconds of training, one thread", ylabel="test accuracy in %")
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=7, fontsize=8, frameon=False)
    return figure


def write_report(results: ResultsFile, folder: Path, base_seconds: float) -> None:
    """Write table.md and figure.png from the finished cells."""
    cells = results.cells
    write_whole(folder / "table.md", markdown_table(cells, base_seconds))
    figure = figure_of(cells, base_seconds)
    FigureCanvasAgg(figure)
    figure.savefig(folder / "figure.png", dpi=150)


def run(options: argparse.Namespace) -> None:
    """Run the missing cells, and write the report after each."""
    torch.set_num_threads(1)
    folder = Path(options.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    results = ResultsFile(folder, options)
    finished = {(cell["method"], cell["budget"], cell["seed"]) for cell in results.cells}
    # Seed by seed and budget by budget, so that a stopped benchmark has compared all methods.
    rounds = [(0, 0, ["pixels"]), *((b, s, options.methods) for s in options.seeds for b in (0, *options.budgets))]
    rounds = [(b, s, [name for name in names if (name, b, s) not in finished]) for b, s, names in rounds]
    rounds = [round for round in rounds if round[2]]
    if not rounds:
        print("all cells are finished")
        write_report(results, folder, options.base_seconds)
        return
    train_images, test_images = load_images(options)

    def record(name: str, budget: int, seed: int, cell: dict[str, Any]) -> None:
        results.add({"method": name, "budget": budget, "seed": seed, **cell})
        write_report(results, folder, options.base_seconds)
        scores = ", ".join(f"{title} {cell[key]:.1%}" for key, title in PROBES.items())
        print(f"{name} x{budget} seed {seed}: {cell['images_seen']:,} images, {_choice(cell)}; {scores}", flush=True)

    for budget, seed, names in rounds:
        if names == ["pixels"]:
            x, test_x = (part.pixels.float().flatten(1) / 127.5 - 1 for part in (train_images, test_images))
            nothing = {"cpu_seconds": 0.0, "images_seen": 0, "block": None, "timestep": None}
            record("pixels", 0, 0, {**nothing, **probe(x, train_images.labels, test_x, test_images.labels)})
            continue
        methods = [METHODS[name]() for name in names]
        for method in methods:
            method.rate = options.rates.get(method.name, method.rate)
        trained: list[Trained | None] = [None] * len(methods)
        if budget:
            trainings = [Training(method, train_images, seed, budget * options.base_seconds) for method in methods]
            train_together(trainings)
            trained = [training.result() for training in trainings]
        for method, reached in zip(methods, trained, strict=True):
            if reached is None:
                method.build(train_images, seed)
                method.reset(seed)
            cell = score_cell(method, reached, train_images, test_images, options.search_images)
            record(method.name, budget, seed, cell)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default=os.environ.get("LDAE_CIFAR10"), help="default: LDAE_CIFAR10")
    parser.add_argument("--output_dir", required=True, help="folder of results.json, table.md and figure.png")
    parser.add_argument("--base_seconds", type=float, default=60.0, help="CPU seconds of budget 1 (default: 60)")
    parser.add_argument("--budgets", type=int, nargs="+", default=BUDGETS, help="multiples of that (default: 1 4 16)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="default: 0")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--train_images", type=int, default=50_000, help="for training and probes (default: 50000)")
    parser.add_argument("--test_images", type=int, default=10_000, help="default: 10000")
    parser.add_argument("--search_images", type=int, default=10_000, help="to choose block and t (default: 10000)")
    parser.add_argument("--image_size", type=int, default=32, help="in pixels (default: 32)")
    parser.add_argument("--rates", nargs="+", default=[], metavar="METHOD=RATE", help="other peak learning rates")
    options = parser.parse_args(arguments)
    if not options.dataset:
        parser.error("dataset is missing; give --dataset FOLDER_OF_PARQUET, or set LDAE_CIFAR10")
    rates = dict(item.partition("=")[::2] for item in options.rates)
    if not set(rates) <= set(METHODS):
        parser.error(f"rates={options.rates} names an unknown method; give METHOD=RATE with one of {list(METHODS)}")
    options.rates = {name: float(rate) for name, rate in rates.items()}
    if options.base_seconds <= 0 or min(options.budgets) < 1:
        parser.error(f"base_seconds={options.base_seconds} and budgets={options.budgets} must be positive")
    return options


if __name__ == "__main__":
    run(parse())
