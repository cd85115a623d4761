"""Networks that runs of one output folder share, latent tokenizers and a small classifier, each trained once.

If another launch trains one, its folder is waited for.
"""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from ldae.deconstruct.preset import Preset
from ldae.files import FolderClaim, hash_settings, write_whole
from ldae.options import read_yaml
from ldae.processes import join_processes
from ldae.sections import FREE_FIELDS
from ldae.training.classifiers import train_resnet_classifier
from ldae.training.recipe import Recipe
from ldae.training.tokenizer_training import tokenizer_recipe, train_tokenizer


def shared_tokenizer(recipe: Recipe, output_dir: Path) -> Path:
    """Train a run's tokenizer in `tokenizers/` of the output folder, unless it is there, and return its folder."""
    folder = output_dir / "tokenizers" / tokenizer_name(recipe)
    own = tokenizer_recipe(recipe, folder)
    with claimed(folder):
        update_paths(folder, own)
        join_processes().wait_for_everyone()
        train_tokenizer(own)
    return folder


def shared_classifier(preset: Preset, recipe: Recipe, output_dir: Path) -> Path:
    """Train the preset's classifier in `classifiers/` of the output folder, unless it is there, and return its folder.

    It is the perceptual network of tokenizers and the feature extractor of FID and KID.
    """
    assert preset.classifier is not None
    config = recipe.model_config()
    # Reset the fields that no number depends on, and the one row's augmentation, which the classifier leaves out.
    data = dataclasses.replace(recipe.data, num_workers=0, cache_dir=None, random_resized_crop=False, decode_size=None)
    described = [dataclasses.asdict(preset.classifier), dataclasses.asdict(data)]
    name = f"resnet-{hash_settings([*described, config.image_size, config.num_channels])}"
    folder = output_dir / "classifiers" / name
    first_seed = dataclasses.replace(recipe.training, seed=0)
    with claimed(folder):
        join_processes().wait_for_everyone()
        return train_resnet_classifier(dataclasses.replace(recipe, training=first_seed), preset.classifier, folder)


def tokenizer_name(recipe: Recipe) -> str:
    """Name the folder of a recipe's tokenizer by its kind, its dimension and a hash of all that it depends on.

    Rows with the same tokenizer share it. Each seed has its own, so that the spread over seeds includes the
    tokenizer's.
    """
    described = tokenizer_recipe(recipe, "shared").resolved()
    described["tokenizer"]["perceptual_model"] = Path(described["tokenizer"]["perceptual_model"]).name
    config = recipe.model_config()
    kept = {  # the fields that a trained number depends on
        section: {name: value for name, value in values.items() if name not in FREE_FIELDS or name == "images"}
        for section, values in described.items()
    }
    return f"{config.latent_tokenizer}-d{config.latent_dim}-{hash_settings(kept)}"


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Claim a folder for this launch while the block runs; only its main process does, the others pass."""
    if not join_processes().is_main_process:
        yield
        return
    claim = FolderClaim(folder)
    if not claim.acquire():
        print(f"Waiting for {folder}: {claim.holder() or 'another launch'} works on it.", flush=True)
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
