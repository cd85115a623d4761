"""What a checkpoint's encoder is worth, beside the same network untrained and raw pixels, all searched and probed alike.

python benchmarks/encoders.py CHECKPOINT --dataset DATASET [--shots 10] [--write_choice true]

The block and the time step are searched on a held-out tenth of a subset of the training images. At the point found, and at
the paper's, all training images are encoded once: a converged logistic probe of all labels, a ridge probe of a few labels
over draws, and k nearest neighbours are scored on the test images. Added to the checkpoint's results.json; its pictures/
get the accuracy over levels of noise and the patches' features as colours.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForPreTraining

import ldae  # noqa: F401 - registers the models with transformers
from ldae.data import Batch, DataConfig, iterate_once, open_probe_images, prepare_images
from ldae.evaluation.baselines import pixel_features, untrained_like
from ldae.evaluation.evaluate import Evaluation
from ldae.evaluation.feature_search import search_features
from ldae.evaluation.features import Features, encoder_of, extract_features
from ldae.evaluation.grid_search import name_layer, write_choice
from ldae.evaluation.images import fixed_subset
from ldae.evaluation.knn import knn_accuracy
from ldae.evaluation.logistic import fit_logistic_grid
from ldae.evaluation.metrics import mean_and_stderr
from ldae.evaluation.probe_features import HOLDOUT, SPLIT_SEED
from ldae.evaluation.ridge import few_shot_ridge, split_holdout
from ldae.hub.model_card import write_model_card
from ldae.reports.patch_pca import patch_pca_images
from ldae.reports.run_pictures import image_rows
from ldae.results import add_result


SIGMAS = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8)  # of noise added to pixels in [-1, 1]


class Measurement:
    """One data set, on which encoders and pixels are scored alike."""

    def __init__(self, dataset: str, size: dict[str, Any], shots: int, draws: int, searched: int):
        self.shots, self.draws = shots, draws
        self.name, self.size = Path(dataset).name, size
        sources = open_probe_images(DataConfig(dataset))
        self.train, self.test = (list(iterate_once(source, **size, batch_size=256)) for source in sources)
        subset = fixed_subset(sources[0], searched, seed=0)
        self.searched = list(iterate_once(subset, **size, batch_size=256))

    def search(self, model: Any) -> tuple[tuple[Any, int], tuple[Any, int]]:
        """Return the chosen point and the paper's."""
        started = time.perf_counter()
        found = search_features(model, self.searched)
        chosen, paper = found.columns[found.chosen], found.columns[found.paper]
        print(
            f"Searched {len(found.columns)} cells in {time.perf_counter() - started:.0f} s: {name_layer(chosen[0])}, "
            f"t = {chosen[1]} has {float(found.probes.held_out[found.chosen]):.1%} held out",
            flush=True,
        )
        return chosen, paper

    def score(self, name: str, train: Features, test: Features, index: int) -> list[dict[str, Any]]:
        """Score one feature set by all three probes, and return the entries of results.json."""
        x, labels, y, truth = train.flat[:, [index]], train.classes, test.flat[:, [index]], test.classes
        kept, held = split_holdout(len(labels), HOLDOUT, SPLIT_SEED)
        parts = (x[kept], labels[kept]), (x[held], labels[held]), (y, truth)
        probes = fit_logistic_grid(*parts, num_classes=int(labels.max()) + 1)
        data = (x[:, 0], labels, y[:, 0], truth)
        few, stderr = mean_and_stderr(few_shot_ridge(*data, shots=self.shots, draws=self.draws))
        layer, timestep = train.columns[index]
        place = {} if layer is None else {"layer": layer, "timestep": timestep, "input": "clean"}
        logistic = {"name": "logistic", "penalty": float(probes.penalty[0]), "holdout": HOLDOUT}
        ridge = {"name": "ridge", "labels_per_class": self.shots, "draws": self.draws, "penalty": "leave-one-out"}
        scores = [
            (
                float(probes.test[0]),
                None,
                {**logistic, "train_images": len(labels), "converged": bool(probes.converged[0])},
            ),
            (few, stderr, ridge),
            (knn_accuracy(*data), None, {"name": "knn", "k": 20, "train_images": len(labels)}),
        ]
        where = "-" if layer is None else f"{name_layer(layer)}, t = {timestep}"
        print(
            f"{name:28s} {where:32s} {scores[0][0]:8.2%} {few:9.2%} ± {stderr or 0:.2%} {scores[2][0]:8.2%}",
            flush=True,
        )
        entries = []
        for value, error, protocol in scores:
            entry = {"metric": "accuracy", "value": value, "dataset": self.name, "split": "test", "n": len(truth)}
            entry |= {"protocol": {**protocol, **place, "augmentation": []}, "seed": 0, "checkpoint": name}
            entries.append(entry if error is None else {**entry, "stderr": error})
        return entries


def measure_model(measurement: Measurement, name: str, model: Any) -> tuple[list[dict[str, Any]], tuple[Any, int]]:
    """Score a model at the point that is searched for it, and at the paper's."""
    chosen, paper = measurement.search(model)
    entries = []
    for kind, (layer, timestep) in dict.fromkeys([("", chosen), (", paper's point", paper)]):
        train, test = (
            extract_features(model, part, layers=[layer], timesteps=[timestep])
            for part in (measurement.train, measurement.test)
        )
        scored = measurement.score(name + kind, train, test, 0)
        # Both points are of one checkpoint; their protocols tell them apart.
        entries += [{**entry, "checkpoint": name, "chosen": not kind} for entry in scored]
    return entries, chosen


def robustness_figure(checkpoint: str, dataset: str) -> Figure:
    """Draw the accuracy of fixed ridge probes over noise on the pixels: the encoder's, the untrained one's, raw pixels'."""
    evaluation = Evaluation(dataset, max_train=10_000, max_test=2_000)
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.subplots()
    table = evaluation.compare(checkpoint, untrained=True, metrics=("robustness",), sigmas=SIGMAS)
    for marker, (name, scores) in zip("o^s", table.scores.items(), strict=False):
        axes.plot(SIGMAS, [100 * score.value for score in scores.values()], marker=marker, label=Path(name).name)
    axes.set(xlabel="standard deviation of the noise, pixels in [-1, 1]", ylabel="test accuracy in %")
    axes.legend(frameon=False)
    return figure


def features_figure(model: Any, batches: Sequence[Batch], point: tuple[Any, int]) -> Figure:
    """Draw eight test images over the three main components of their patches' features."""
    batch, side = batches[0], model.config.image_size
    pixels = prepare_images(batch.images[:8], batch.positions[:8], 0, image_size=side)
    colours = patch_pca_images(model, pixels, *point)
    colours = F.interpolate(colours, size=(side, side), mode="nearest") * 2 - 1
    return image_rows([("test images", pixels), ("features", colours)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--shots", type=int, default=10, help="labels a class of the few-shot probe (default: 10)")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument(
        "--searched_images", type=int, default=5000, help="training images of the search (default: 5000)"
    )
    parser.add_argument("--write_choice", default="true", choices=("true", "false"), help="into config.json")
    options = parser.parse_args()
    folder = Path(options.checkpoint)
    config = AutoConfig.from_pretrained(folder)
    size = {"image_size": config.image_size, "num_channels": config.num_channels}
    measurement = Measurement(options.dataset, size, options.shots, options.draws, options.searched_images)
    denoiser = AutoModelForPreTraining.from_pretrained(folder).eval()
    model = encoder_of(denoiser)

    print(f"{'features':28s} {'read at':32s} {'linear':>8s} {f'{options.shots}-shot':>17s} {'kNN':>8s}")
    entries, chosen = measure_model(measurement, ".", model)
    if options.write_choice == "true":
        write_choice(folder, *chosen)
    entries += measure_model(measurement, "untrained", encoder_of(untrained_like(denoiser, seed=0)))[0]
    pixels = [pixel_features(part, image_size=config.image_size) for part in (measurement.train, measurement.test)]
    entries += measurement.score("raw pixels", *pixels, 0)
    for entry in entries:
        add_result(folder, entry)

    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    FigureCanvasAgg(features_figure(model, measurement.test, chosen)).print_png(pictures / "patch_features.png")
    FigureCanvasAgg(robustness_figure(str(folder), options.dataset)).print_png(pictures / "robustness.png")
    write_model_card(folder)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
