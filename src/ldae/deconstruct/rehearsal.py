"""A rehearsal of a preset: the first steps of every row, and the time of the whole launch."""

import dataclasses

from ldae.deconstruct.runner import Deconstruction
from ldae.training.estimate import rehearse
from ldae.training.machine import release_memory
from ldae.training.pretraining import DenoisingTask, without_folder
from ldae.training.progress import describe_seconds
from ldae.training.recipe import Recipe
from ldae.training.tokenizer_training import rehearse_tokenizer, trains_tokenizer


def rehearse_rows(launch: Deconstruction) -> float:
    """Take the first steps of each row of a launch, and of each tokenizer, and print the times, without writing.

    A perceptual loss is left out, because its network may have to be trained first.

    Args:
        launch ([`Deconstruction`]): The launch; it is not started.

    Returns:
        `float`: Seconds that all rows and seeds train for. Probes and samples are not part of it.

    Raises:
        ValueError, RunError: As of [`~ldae.training.estimate.rehearse`].
    """
    total = 0.0
    for run in {run.variant.name: run for run in launch.runs}.values():
        runs = sum(other.variant.name == run.variant.name for other in launch.runs)
        launch.say(f"\n{run.variant.name}, {runs} {'run' if runs == 1 else 'runs'}")
        recipe = _without_perceptual_loss(without_folder(launch.recipe(run)))
        seconds = rehearse(DenoisingTask(recipe)).seconds
        if trains_tokenizer(recipe):
            tokenizer = rehearse_tokenizer(recipe)
            seconds += tokenizer.seconds if tokenizer is not None else 0.0
        total += runs * seconds
        release_memory()
    counted = f"{len(launch.runs)} run{'' if len(launch.runs) == 1 else 's'}"
    launch.say(
        f"\nTraining takes about {describe_seconds(total)} for {counted}, without fits, probes and samples; rows that "
        "share a trained tokenizer take less."
    )
    return total


def _without_perceptual_loss(recipe: Recipe) -> Recipe:
    return dataclasses.replace(recipe, tokenizer=dataclasses.replace(recipe.tokenizer, perceptual_weight=0.0))
