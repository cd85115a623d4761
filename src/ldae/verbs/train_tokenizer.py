"""`ldae train_tokenizer --config FILE.yaml --output_dir DIR`: fit or train a recipe's latent tokenizer for later runs."""

import argparse

from accelerate import Accelerator

from ldae.training.tokenizer_training import train_tokenizer
from ldae.verbs.pretrain import parse_recipe_arguments


def main(arguments: list[str]) -> int:
    """Run the verb; a folder that holds a fitting tokenizer already is left as it is."""
    parser = argparse.ArgumentParser(
        "ldae train_tokenizer", description="Fit or train the latent tokenizer of a recipe. The same command resumes."
    )
    folder = train_tokenizer(parse_recipe_arguments(parser, arguments).recipe)
    Accelerator().print(f"Finished: pre-train with --tokenizer {folder}")
    return 0
