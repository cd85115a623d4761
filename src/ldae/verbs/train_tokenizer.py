"""`ldae train_tokenizer --config FILE.yaml --output_dir DIR`: fit or train a latent tokenizer for later runs."""

from accelerate import Accelerator

from ldae.training.recipe import load_recipe
from ldae.training.tokenizer_training import train_tokenizer
from ldae.verbs.options.train import TrainTokenizerOptions


def run(options: TrainTokenizerOptions) -> int:
    """Run the verb; a folder that already holds a fitting tokenizer stays unchanged."""
    folder = train_tokenizer(load_recipe(options.config, options.overrides))
    Accelerator().print(f"Finished: pre-train with --tokenizer {folder}")
    return 0
