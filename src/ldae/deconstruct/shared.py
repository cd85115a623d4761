"""What several runs of an output folder share: latent tokenizers and the small classifier, each made once."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml
from accelerate import PartialState

from ldae.deconstruct.preset import Preset
from ldae.deconstruct.unit_folder import settings_hash
from ldae.deconstruct.variants import tokenizer_name
from ldae.files import FolderClaim, write_whole
from ldae.training.recipe import Recipe
from ldae.training.resnet_classifier import train_resnet_classifier
from ldae.training.tokenizer_training import tokenizer_recipe, train_tokenizer


def shared_tokenizer(recipe: Recipe, output_dir: Path, say: Callable[[str], None]) -> Path:
    """
    The tokenizer of a run, in `tokenizers/` of the output folder: trained here, by a row before, or by another process,
    which is then waited for.

    Args:
        recipe ([`Recipe`]): Of the run.
        output_dir (`Path`): Of the launch.
        say (`Callable[[str], None]`): Prints a line.

    Returns:
        Its folder.
    """
    folder = output_dir / "tokenizers" / tokenizer_name(recipe)
    own = tokenizer_recipe(recipe, folder)
    with exclusively(folder, say):
        follow_move(folder, own)
        PartialState().wait_for_everyone()
        train_tokenizer(own)
    return folder


def shared_classifier(preset: Preset, recipe: Recipe, output_dir: Path, say: Callable[[str], None]) -> Path:
    """
    The preset's small supervised network, in `classifiers/` of the output folder: perceptual network and extractor of
    features for FID and KID. Arguments and result are as of [`shared_tokenizer`].
    """
    assert preset.classifier is not None
    config = recipe.model_config()
    # What of the data no number depends on, and the one row's augmentation, which the classifier leaves out.
    data = dataclasses.replace(recipe.data, num_workers=0, cache_dir=None, random_resized_crop=False, decode_size=None)
    described = [dataclasses.asdict(preset.classifier), dataclasses.asdict(data)]
    about = [*described, config.image_size, config.num_channels]
    folder = output_dir / "classifiers" / f"resnet-{settings_hash(about)}"
    first_seed = dataclasses.replace(recipe.training, seed=0)
    with exclusively(folder, say):
        PartialState().wait_for_everyone()
        return train_resnet_classifier(dataclasses.replace(recipe, training=first_seed), preset.classifier, folder)


@contextmanager
def exclusively(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """While entered by its main process, this launch alone works in a folder; the other processes pass freely."""
    if not PartialState().is_main_process:
        yield
        return
    claim = FolderClaim(folder)
    if not claim.acquire():
        say(f"Waiting for {folder}, which {claim.holder() or 'another launch'} works on.")
    with claim:
        yield


def follow_move(folder: Path, recipe: Recipe) -> None:
    """
    Bring the paths to shared folders in a recipe.yaml up to date, so that an output folder can be moved: a run is
    compared with the recipe that it began with, and where its tokenizer lies makes no difference to it.
    """
    file = folder / "recipe.yaml"
    if not file.is_file() or not PartialState().is_main_process:
        return
    stored = yaml.safe_load(file.read_text())
    for name in ("tokenizer", "perceptual_model"):
        ours, theirs = getattr(recipe.tokenizer, name), stored["tokenizer"].get(name)
        if ours and theirs and ours != theirs and Path(ours).name == Path(theirs).name:
            stored["tokenizer"][name] = ours
            write_whole(file, yaml.safe_dump(stored, sort_keys=False))
