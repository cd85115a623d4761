"""`ldae train_tokenizer --config FILE.yaml --output_dir DIR`: fit or train a latent tokenizer for later runs."""

from ldae.processes import join_processes
from ldae.training.recipe import load_recipe
from ldae.training.tokenizer_training import rehearse_tokenizer, train_tokenizer
from ldae.verbs.options.train import TrainTokenizerOptions


def run(options: TrainTokenizerOptions) -> int:
    """Run the verb; a folder that already holds a fitting tokenizer stays unchanged."""
    recipe = load_recipe(options.config, options.overrides)
    if options.dry_run:
        rehearse_tokenizer(recipe)
        return 0
    folder = train_tokenizer(recipe)
    join_processes().print(f"Finished: pre-train with --tokenizer {folder}")
    return 0
