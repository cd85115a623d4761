"""The whole way on the embedded digits: fit PCA, pre-train, compare, load back. Run it by `make quickstart`."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

from transformers.utils.logging import disable_progress_bar

from ldae import LDAEForPreTraining
from ldae.data import iterate_once, open_probe_images
from ldae.evaluation.comparison import ComparedFeatures, compare_few_shot
from ldae.hub.model_card import write_model_card
from ldae.results import add_result
from ldae.training.pretraining import pretrain
from ldae.training.recipe import Recipe, load_recipe


RECIPE = Path(__file__).parent / "recipes" / "digits.yaml"
FOLDER = Path("runs/quickstart")
SHOTS, DRAWS = 5, 20

# What a user of the finished folder writes; run in a process of its own.
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


def main() -> None:
    started = time.perf_counter()
    disable_progress_bar()  # of transformers' loading and saving: the pre-training shows its own
    if FOLDER.exists():
        shutil.rmtree(FOLDER)  # a quick start starts
    recipe = load_recipe(RECIPE, {"output_dir": str(FOLDER)})
    pretrain(recipe)

    compared = compare(recipe)
    print(table(compared))
    print(verdict(compared))
    record(compared)
    write_model_card(FOLDER)

    print("\nLoaded back in a new process:")
    subprocess.run([sys.executable, "-c", LOAD_BACK, str(FOLDER)], check=True)
    print(
        f"\nPictures: {', '.join(sorted(path.name for path in (FOLDER / 'pictures').iterdir()))} in {FOLDER}/pictures"
    )
    print(f"Done in {time.perf_counter() - started:.0f} s. Next: the recipes in training/recipes, on your own images.")


def compare(recipe: Recipe) -> list[ComparedFeatures]:
    model = LDAEForPreTraining.from_pretrained(FOLDER).eval()
    size = {"image_size": model.config.image_size, "num_channels": model.config.num_channels, "batch_size": 256}
    train, test = (list(iterate_once(source, **size)) for source in open_probe_images(recipe.data))
    return compare_few_shot(model, train, test, shots=SHOTS, draws=DRAWS)


def table(compared: list[ComparedFeatures]) -> str:
    lines = [
        f"\n{'features':24s} {f'ridge, {SHOTS} labels a class':>26s} {'kNN, all labels':>18s}",
        *(f"{c.name:24s} {c.few_shot:17.1%} ± {c.few_shot_stderr or 0:6.1%} {c.knn:18.1%}" for c in compared),
        f"Test accuracy on 360 digits; ridge: mean and standard error over {DRAWS} draws of the labels.",
    ]
    return "\n".join(lines)


def verdict(compared: list[ComparedFeatures]) -> str:
    trained, *others = compared
    beaten = [c.name for c in others if trained.few_shot > c.few_shot]
    unbeaten = [c.name for c in others if trained.few_shot <= c.few_shot]
    sentence = f"The trained encoder is ahead of: {', '.join(beaten) or 'none'}."
    return sentence + (f" It is NOT ahead of: {', '.join(unbeaten)}." if unbeaten else "")


def record(compared: list[ComparedFeatures]) -> None:
    """Write every row into results.json; the trained encoder is the folder's own checkpoint."""
    ridge = {"name": "ridge", "labels_per_class": SHOTS, "draws": DRAWS, "pooling": "mean"}
    knn = {"name": "knn", "k": 20, "pooling": "mean"}
    for row, c in enumerate(compared):
        entry = {"metric": "accuracy", "dataset": "digits", "split": "test", "n": 360, "seed": 0}
        entry["checkpoint"] = c.name if row else "."
        add_result(FOLDER, {**entry, "value": c.few_shot, "stderr": c.few_shot_stderr, "protocol": ridge})
        add_result(FOLDER, {**entry, "value": c.knn, "protocol": knn})


if __name__ == "__main__":
    main()
