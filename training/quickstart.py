"""Pre-train on the embedded digits, search where to read features, compare, draw and load back (`make quickstart`)."""

import argparse
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ldae_cli  # noqa: F401 - before torch, so that its idle threads sleep


# isort: split
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from torch.nn import functional as F
from transformers.utils.logging import disable_progress_bar

from ldae import LDAEForPreTraining
from ldae.data import Batch, iterate_once, open_probe_images, prepare_images
from ldae.evaluation.encoder import as_encoder, baselines_of
from ldae.evaluation.features import Features, extract_features
from ldae.evaluation.knn import fit_directions, knn_accuracy, similarity
from ldae.evaluation.metrics import mean_and_stderr
from ldae.evaluation.ridge import few_shot_ridge
from ldae.evaluation.search import FeatureSearch, GridScore, search_features, write_choice
from ldae.hub.model_card import write_model_card
from ldae.reports.image_grids import neighbour_picture
from ldae.reports.layer_maps import heat_map
from ldae.reports.patch_pca import patch_pca_images
from ldae.reports.run_pictures import image_rows
from ldae.results import Result, add_result
from ldae.training.pretraining import pretrain
from ldae.training.recipe import Recipe, load_recipe


RECIPE = Path(__file__).parent / "recipes" / "digits.yaml"
SHOTS, DRAWS = 5, 20
SHOWN = 5  # test digits whose neighbours are drawn
WHITENED = 64  # principal components of whitened features

# Code of a user of the finished folder; it runs in its own process.
LOAD_BACK = """
import sys, numpy, PIL.Image
import ldae
from transformers import AutoImageProcessor, AutoModel, pipeline
from transformers.utils.logging import disable_progress_bar

disable_progress_bar()
folder = sys.argv[1]
encoder = AutoModel.from_pretrained(folder)
image = PIL.Image.fromarray(numpy.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=numpy.uint8))
features = pipeline("image-feature-extraction", model=folder)(image, pool=True, return_tensors=True)
pixels = AutoImageProcessor.from_pretrained(folder)(image, return_tensors="pt").pixel_values
error = (encoder(pixels).pooler_output - features).abs().max().item()
print(f"AutoModel gives {type(encoder).__name__}, pipeline(pool=True) features of shape {tuple(features.shape)}; "
      f"largest difference between the two: {error:.1e}")
assert error < 1e-5
"""


@dataclass(frozen=True)
class Row:
    """A row of the table: features, where they are read, and their test accuracies."""

    name: str
    layer: Any
    timestep: Any
    few_shot: float
    few_shot_stderr: float
    knn: float
    whitened_knn: float

    @property
    def place(self) -> str:
        """Block and time step as text; a dash for features that have neither."""
        return "-" if self.layer is None else f"block {self.layer}, t = {self.timestep}"


def main() -> None:
    parser = argparse.ArgumentParser(description="Train, search, compare and draw, on the embedded digits.")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/quickstart"), help="the run's folder")
    parser.add_argument("--seeds", default="0", help="several, such as 0,1,2, get one folder each and a summary")
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    disable_progress_bar()  # of transformers' loading and saving; pre-training shows its own
    if len(seeds) == 1:
        run(options.output_dir, seeds[0])
        return
    tables = [run(options.output_dir / f"seed-{seed}", seed) for seed in seeds]
    print(summary(tables))


def run(folder: Path, seed: int) -> list[Row]:
    """Do the whole quick start once and return its table."""
    started = time.perf_counter()
    if folder.exists():
        shutil.rmtree(folder)  # a quick start always starts from nothing
    # Pre-training's own search uses all labels; this quick start searches with few.
    recipe = load_recipe(RECIPE, {"output_dir": str(folder), "seed": str(seed), "select_features": "false"})
    pretrain(recipe)
    rows, search, train, test = compare(folder, recipe)
    write_choice(folder, search.layer, search.timestep)
    print(table(rows))
    print(verdict(rows))
    record(folder, rows, search, seed)
    draw(folder, search, train, test)
    write_model_card(folder)

    print("\nLoaded back in a new process:")
    subprocess.run([sys.executable, "-c", LOAD_BACK, str(folder)], check=True)
    print(f"\nPictures in {folder}/pictures: {', '.join(sorted(p.name for p in (folder / 'pictures').iterdir()))}")
    print(f"Done in {time.perf_counter() - started:.0f} s. Next: the recipes in training/recipes, on your own images.")
    return rows


def compare(folder: Path, recipe: Recipe) -> tuple[list[Row], FeatureSearch, list[Batch], list[Batch]]:
    """Search the trained and the untrained network, then score both, the paper's point, pixels and mean latents."""
    model = LDAEForPreTraining.from_pretrained(folder).eval()
    size = {"image_size": model.config.image_size, "num_channels": model.config.num_channels, "batch_size": 256}
    train, test = (list(iterate_once(source, **size)) for source in open_probe_images(recipe.data))
    encoder = as_encoder(model)

    started = time.perf_counter()
    search = search_features(encoder, train, test, shots=SHOTS, draws=DRAWS // 2)
    print(
        f"\nSearched {len(search.train.layers)} blocks x {len(search.train.timesteps)} time steps in "
        f"{time.perf_counter() - started:.1f} s: block {search.layer} at t = {search.timestep} has "
        f"{search.accuracy:.1%} on held-out training images ({SHOTS} labels a class)."
    )
    rows = [
        score("trained, at the chosen point", search.train, search.test, search.chosen),
        score("trained, at the paper's t", search.train, search.test, search.paper),
    ]
    fresh = search_features(encoder.untrained(recipe.training.seed), train, test, shots=SHOTS, draws=DRAWS // 2)
    rows.append(score("untrained, searched alike", fresh.train, fresh.test, fresh.chosen))
    for baseline in baselines_of(encoder)[1:]:
        rows.append(score(baseline.name, *(extract_features(baseline, part) for part in (train, test)), 0))
    return rows, search, train, test


def score(name: str, fitted: Features, scored: Any, index: int) -> Row:
    """Probe one cell of features; every row uses the same draws of labels."""
    data = (fitted.flat[:, index], fitted.classes, scored.flat[:, index], scored.classes)
    mean, stderr = mean_and_stderr(few_shot_ridge(*data, shots=SHOTS, draws=DRAWS))
    neighbours = (knn_accuracy(*data, whiten=components) for components in (None, WHITENED))
    return Row(name, *fitted.columns[index], mean, stderr or 0.0, *neighbours)


def table(rows: list[Row]) -> str:
    """Format the comparison as text."""
    lines = [
        f"\n{'features':29s} {'read at':17s} {f'ridge, {SHOTS} labels a class':>25s} {'kNN':>7s} {'whitened':>9s}",
        *(
            f"{r.name:29s} {r.place:17s} {r.few_shot:16.1%} ± {r.few_shot_stderr:6.1%} {r.knn:7.1%} "
            f"{r.whitened_knn:9.1%}"
            for r in rows
        ),
        f"Test accuracy on 360 digits; ridge: mean and standard error over {DRAWS} draws of the labels; kNN: all "
        f"labels,\non features as they are, and on their first {WHITENED} principal components scaled to variance 1.",
    ]
    return "\n".join(lines)


def verdict(rows: list[Row]) -> str:
    """Name the rows that the trained encoder beats, and those that it does not."""
    trained, others = rows[0], rows[1:]
    beaten = [r.name for r in others if trained.few_shot > r.few_shot]
    unbeaten = [r.name for r in others if trained.few_shot <= r.few_shot]
    sentence = f"With {SHOTS} labels a class the trained encoder is ahead of: {', '.join(beaten) or 'none'}."
    return sentence + (f" It is NOT ahead of: {', '.join(unbeaten)}." if unbeaten else "")


def record(folder: Path, rows: list[Row], search: FeatureSearch, seed: int) -> None:
    """Write every row into results.json; the trained encoder is the folder's own checkpoint."""
    for r in rows:
        place = {} if r.layer is None else {"layer": r.layer, "timestep": r.timestep, "input": "clean"}
        ridge = {"name": "ridge", "labels_per_class": SHOTS, "draws": DRAWS, "pooling": "mean", **place}
        about: dict[str, Any] = {
            "n": 360,
            "seeds": seed,
            "checkpoint": "." if r.name.startswith("trained") else r.name,
        }
        chosen = {"held_out_value": search.accuracy, "chosen": True} if r is rows[0] else {}
        few_shot = {**about, "stderr": r.few_shot_stderr, "details": chosen}
        add_result(folder, Result("accuracy", r.few_shot, "digits", "test", ridge, **few_shot))
        for value, whiten in ((r.knn, None), (r.whitened_knn, WHITENED)):
            knn = {"name": "knn", "k": 20, "pooling": "mean", **similarity(whiten), **place}
            add_result(folder, Result("accuracy", value, "digits", "test", knn, **about))


def draw(folder: Path, search: FeatureSearch, train: list[Batch], test: list[Batch]) -> None:
    """Draw the search as a heat map, patch features as colours, and the neighbours of test digits."""
    pictures = folder / "pictures"
    model = LDAEForPreTraining.from_pretrained(folder).eval()
    cells = [
        GridScore(layer, t, False, value, value, None)
        for (layer, t), value in zip(search.columns, search.held_out.tolist(), strict=True)
    ]
    winner, paper = cells[search.chosen], search.columns[search.paper]
    label = f"held-out accuracy in %, {SHOTS} labels a class"
    FigureCanvasAgg(heat_map(cells, winner, paper, label=label)).print_png(pictures / "search.png")

    batch = test[0]
    pixels = prepare_images(batch.images[:8], batch.positions[:8], 0, image_size=model.config.image_size)
    colours = patch_pca_images(model, pixels, search.layer, search.timestep)  # (b, 3, h, w) in [0, 1]
    colours = F.interpolate(colours, size=pixels.shape[2:], mode="nearest") * 2 - 1
    FigureCanvasAgg(image_rows([("digits", pixels), ("features", colours)])).print_png(pictures / "patch_features.png")

    fitted, scored, index = search.train, search.test, search.chosen
    directions = fit_directions(fitted.flat[:, index], WHITENED)
    gallery, queries = directions(fitted.flat[:, index]), directions(scored.flat[:SHOWN, index])
    similarity, nearest = (queries @ gallery.T).topk(4, dim=1)  # (SHOWN, 4)
    gallery_images = torch.cat([b.images for b in train])
    images: list[torch.Tensor | None] = []
    captions: list[list[str]] = []
    for query in range(SHOWN):
        images.append(batch.images[query])
        captions.append([f"test digit {int(scored.classes[query])}"])
        for value, neighbour in zip(similarity[query], nearest[query], strict=True):
            images.append(gallery_images[neighbour])
            captions.append([f"a {int(fitted.classes[neighbour])}, cosine {value:.2f}"])
    rows = [neighbour_picture(images[i : i + 5], captions[i : i + 5]) for i in range(0, len(images), 5)]
    stack = rows[0].resize((rows[0].width, sum(row.height for row in rows)))
    top = 0
    for row in rows:
        stack.paste(row, (0, top))
        top += row.height
    stack.save(pictures / "neighbours.png")


def summary(tables: list[list[Row]]) -> str:
    """Format the mean over seeds of each row, and the trained encoder's lead over it with its standard error."""
    lines = [f"\nOver {len(tables)} seeds, {SHOTS} labels a class:"]
    for rows in zip(*tables, strict=True):
        values = [r.few_shot for r in rows]
        mean, stderr = mean_and_stderr(values)
        line = f"{rows[0].name:29s} {mean:7.1%} ± {stderr or 0:5.1%}   kNN {sum(r.knn for r in rows) / len(rows):6.1%}"
        line += f", whitened {sum(r.whitened_knn for r in rows) / len(rows):6.1%}"
        if rows[0] is not tables[0][0]:
            gain, error = mean_and_stderr([t[0].few_shot - r.few_shot for t, r in zip(tables, rows, strict=True)])
            line += f"   trained is ahead by {gain:6.1%} ± {error or 0:5.1%}"
        lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    main()
