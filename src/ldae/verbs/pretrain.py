"""`ldae pretrain --config FILE.yaml [--field value ...]`: pre-train from a recipe, or go on where it was stopped."""

from ldae.training.pretraining import pretrain
from ldae.training.recipe import load_recipe
from ldae.verbs.options.train import PretrainOptions


def run(options: PretrainOptions) -> int:
    """Run the verb; the exit status is 0 on a finished run."""
    pretrain(load_recipe(options.config, options.overrides))
    return 0
