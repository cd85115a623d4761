"""Measure a checkpoint's encoder, the same network untrained and raw pixels by the same probes.

    python benchmarks/encoders.py CHECKPOINT --dataset DATASET [--train_images N]
        [--parts trained,untrained,pixels,pictures]

Block and time step are searched on a held-out tenth of a subset of the training images. At the point found, and at the
paper's, all training images are encoded once, and three probes are scored on the test images: a converged logistic
probe of all labels, a ridge probe of a few labels over several draws, and k nearest neighbours. Each number is added
to the checkpoint's results.json as soon as it is measured, so parts can be measured separately. Its pictures/ get the
accuracy over levels of noise, and the patches' features as colours.
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
from ldae.evaluation.encoder import PixelEncoder, name_layer
from ldae.evaluation.evaluate import SIGMAS, Evaluation
from ldae.evaluation.features import Features, extract_features
from ldae.evaluation.images import fixed_subset
from ldae.evaluation.knn import knn_accuracy
from ldae.evaluation.metrics import mean_and_stderr
from ldae.evaluation.probing import probe_features
from ldae.evaluation.protocol import HOLDOUT
from ldae.evaluation.ridge import few_shot_ridge
from ldae.evaluation.search import search_features, write_choice
from ldae.evaluation.untrained import untrained_like
from ldae.hub.model_card import write_model_card
from ldae.reports.patch_pca import patch_pca_images
from ldae.reports.run_pictures import image_rows
from ldae.results import Result, add_result


MOST_LOGISTIC = 1024  # dimensions; wider features, such as raw pixels, get a ridge probe in closed form instead


class Measurement:
    """One data set, on which encoders and pixels are scored by the same probes."""

    def __init__(self, folder: Path, size: dict[str, Any], options: argparse.Namespace):
        self.folder, self.shots, self.draws = folder, options.shots, options.draws
        self.name = Path(options.dataset).name
        source, test = open_probe_images(DataConfig(options.dataset))
        train = source if options.train_images is None else fixed_subset(source, options.train_images, seed=0)
        searched = fixed_subset(train, options.searched_images, seed=0)
        self.train, self.test, self.searched = (
            list(iterate_once(part, **size, batch_size=256)) for part in (train, test, searched)
        )

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

    def score(self, checkpoint: str, train: Features, test: Features, **more: Any) -> None:
        """Score the first feature set by all three probes, and add the scores to results.json."""
        x, labels, y, truth = train.flat[:, [0]], train.classes, test.flat[:, [0]], test.classes
        probe = "logistic" if x.shape[-1] <= MOST_LOGISTIC else "ridge"
        probes = probe_features(probe, train, test)
        linear = {"name": probe, **{k: v for k, v in probes.describe(0).items() if k in ("converged", "penalty")}}
        data = (x[:, 0], labels, y[:, 0], truth)
        few, stderr = mean_and_stderr(few_shot_ridge(*data, shots=self.shots, draws=self.draws))
        layer, timestep = train.columns[0]
        place = {} if layer is None else {"layer": layer, "timestep": timestep, "input": "clean"}
        linear |= {"holdout": HOLDOUT, "train_images": len(labels)}
        ridge = {"name": "ridge", "labels_per_class": self.shots, "draws": self.draws, "penalty": "leave-one-out"}
        knn = {"name": "knn", "k": 20, "train_images": len(labels)}
        scores = [(float(probes.test[0]), None, linear), (few, stderr, ridge), (knn_accuracy(*data), None, knn)]
        where = "-" if layer is None else f"{name_layer(layer)}, t = {timestep}"
        values = f"{scores[0][0]:8.2%} {few:9.2%} ± {stderr or 0:.2%} {scores[2][0]:8.2%}"
        print(f"{checkpoint:12s} {where:36s} {values}", flush=True)
        for value, error, protocol in scores:
            about = {"checkpoint": checkpoint, "stderr": error, "n": len(truth), "details": more}
            protocol = {**protocol, **place, "augmentation": []}
            add_result(self.folder, Result("accuracy", value, self.name, "test", protocol, **about))

    def score_model(self, checkpoint: str, model: Any, point: tuple[Any, int], chosen: bool) -> None:
        """Score a model at one block and time step."""
        train, test = (
            extract_features(model, part, layers=[point[0]], timesteps=[point[1]]) for part in (self.train, self.test)
        )
        self.score(checkpoint, train, test, chosen=chosen)


def robustness_figure(checkpoint: str, dataset: str) -> Figure:
    """Draw the accuracy of fixed ridge probes over noise on the pixels, for encoder, untrained encoder and pixels."""
    evaluation = Evaluation(dataset, max_train=10_000, max_test=2_000)
    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.subplots()
    table = evaluation.compare(checkpoint, untrained=True, metrics=("robustness",), sigmas=SIGMAS)
    for marker, (name, scores) in zip("o^s", table.scores.items(), strict=False):
        axes.plot(
            (0.0, *SIGMAS), [100 * score.value for score in scores.values()], marker=marker, label=Path(name).name
        )
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
    parser.add_argument("--draws", type=int, default=20, help="number of draws of these labels (default: 20)")
    parser.add_argument("--train_images", type=int, help="number of training images to use (default: all)")
    parser.add_argument(
        "--searched_images", type=int, default=5000, help="training images of the search (default: 5000)"
    )
    parser.add_argument("--parts", default="trained,untrained,pixels,pictures")
    options = parser.parse_args()
    folder, parts = Path(options.checkpoint), options.parts.split(",")
    config = AutoConfig.from_pretrained(folder)
    size = {"image_size": config.image_size, "num_channels": config.num_channels}
    measurement = Measurement(folder, size, options)
    denoiser = AutoModelForPreTraining.from_pretrained(folder).eval()
    model = denoiser.base_model

    print(f"{'features':12s} {'read at':36s} {'linear':>8s} {f'{options.shots}-shot':>17s} {'kNN':>8s}")
    if "trained" in parts:
        chosen, paper = measurement.search(model)
        write_choice(folder, *chosen)
        measurement.score_model(".", model, chosen, chosen=True)
        if paper != chosen:
            measurement.score_model(".", model, paper, chosen=False)
    if "untrained" in parts:
        fresh = untrained_like(denoiser, seed=0).base_model
        measurement.score_model("untrained", fresh, measurement.search(fresh)[0], chosen=True)
    if "pixels" in parts:
        raw = PixelEncoder(config.image_size, config.num_channels)
        pixels = [extract_features(raw, part) for part in (measurement.train, measurement.test)]
        measurement.score("raw pixels", *pixels)
    if "pictures" in parts:
        config = AutoConfig.from_pretrained(folder)
        layer = config.feature_layer or getattr(config, "num_hidden_layers", None)
        pictures = folder / "pictures"
        pictures.mkdir(exist_ok=True)
        figure = features_figure(model, measurement.test, (layer, config.feature_timestep))
        FigureCanvasAgg(figure).print_png(pictures / "patch_features.png")
        FigureCanvasAgg(robustness_figure(str(folder), options.dataset)).print_png(pictures / "robustness.png")
    write_model_card(folder)


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
