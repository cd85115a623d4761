"""`ldae pretrain --config FILE.yaml [--field value ...]`: pre-train from a recipe, or go on where it was stopped."""

from ldae.training.pretraining import pretrain, rehearse_pretraining
from ldae.training.recipe import load_recipe
from ldae.verbs.options.train import PretrainOptions


def run(options: PretrainOptions) -> int:
    """Run the verb; the exit status is 0 on a finished run."""
    recipe = load_recipe(options.config, options.overrides)
    if options.dry_run:
        rehearse_pretraining(recipe)
    else:
        pretrain(recipe)
    return 0
