"""Networks that runs of one output folder share, latent tokenizers and a small classifier, each trained once."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from ldae.deconstruct.preset import Preset
from ldae.deconstruct.variants import tokenizer_name
from ldae.files import FolderClaim, hash_settings, write_whole
from ldae.options import read_yaml
from ldae.processes import join_processes
from ldae.training.classifiers import train_resnet_classifier
from ldae.training.recipe import Recipe
from ldae.training.tokenizer_training import tokenizer_recipe, train_tokenizer


def shared_tokenizer(recipe: Recipe, output_dir: Path, say: Callable[[str], None]) -> Path:
    """Train a run's tokenizer in `tokenizers/` of the output folder, unless it is there.

    If another launch trains it, wait for that one.

    Args:
        recipe ([`Recipe`]): The run's recipe.
        output_dir (`Path`): The launch's output folder.
        say (`Callable[[str], None]`): Prints a line.

    Returns:
        `Path`: The tokenizer's folder.
    """
    folder = output_dir / "tokenizers" / tokenizer_name(recipe)
    own = tokenizer_recipe(recipe, folder)
    with claimed(folder, say):
        update_paths(folder, own)
        join_processes().wait_for_everyone()
        train_tokenizer(own)
    return folder


def shared_classifier(preset: Preset, recipe: Recipe, output_dir: Path, say: Callable[[str], None]) -> Path:
    """Train the preset's small supervised network in `classifiers/` of the output folder, unless it is there.

    It is the perceptual network of tokenizers and the feature extractor of FID and KID. Arguments and result are those
    of [`shared_tokenizer`], with the preset.
    """
    assert preset.classifier is not None
    config = recipe.model_config()
    # Reset the fields that no number depends on, and the one row's augmentation, which the classifier leaves out.
    data = dataclasses.replace(recipe.data, num_workers=0, cache_dir=None, random_resized_crop=False, decode_size=None)
    described = [dataclasses.asdict(preset.classifier), dataclasses.asdict(data)]
    folder = (
        output_dir / "classifiers" / f"resnet-{hash_settings([*described, config.image_size, config.num_channels])}"
    )
    first_seed = dataclasses.replace(recipe.training, seed=0)
    with claimed(folder, say):
        join_processes().wait_for_everyone()
        return train_resnet_classifier(dataclasses.replace(recipe, training=first_seed), preset.classifier, folder)


@contextmanager
def claimed(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Claim a folder for this launch while the block runs; only its main process does, the others pass."""
    if not join_processes().is_main_process:
        yield
        return
    claim = FolderClaim(folder)
    if not claim.acquire():
        say(f"Waiting for {folder}: {claim.holder() or 'another launch'} works on it.")
        claim.wait()
    try:
        yield
    finally:
        claim.release()


def update_paths(folder: Path, recipe: Recipe) -> None:
    """Update the paths to shared networks in a recipe.yaml, so that an output folder can be moved.

    A run is compared with the recipe that it began with; the place of its tokenizer makes no difference to it.
    """
    file = folder / "recipe.yaml"
    if not file.is_file() or not join_processes().is_main_process:
        return
    stored = read_yaml(file)
    for name in ("tokenizer", "perceptual_model"):
        ours, theirs = getattr(recipe.tokenizer, name), stored["tokenizer"].get(name)
        if ours and theirs and ours != theirs and Path(ours).name == Path(theirs).name:
            stored["tokenizer"][name] = ours
            write_whole(file, yaml.safe_dump(stored, sort_keys=False))
