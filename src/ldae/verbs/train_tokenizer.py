"""`ldae train_tokenizer --config FILE.yaml --output_dir DIR`: fit a recipe's latent tokenizer for later runs."""

import argparse
from pathlib import Path

from accelerate import Accelerator

from ldae.data import open_images
from ldae.tokenizers.files import TOKENIZER_FILE, load_tokenizer, save_tokenizer
from ldae.training.tokenizer_fit import fit_on_source
from ldae.verbs.pretrain import parse_recipe_arguments


def main(arguments: list[str]) -> int:
    """Run the verb; a folder that holds a fitting tokenizer already is left as it is."""
    parser = argparse.ArgumentParser("ldae train_tokenizer", description="Fit the latent tokenizer of a recipe.")
    recipe = parse_recipe_arguments(parser, arguments).recipe
    if recipe.training.output_dir is None:
        raise ValueError("output_dir is missing; give the tokenizer's folder (--output_dir runs/tokenizer).")
    folder, accelerator = Path(recipe.training.output_dir), Accelerator()
    if (folder / TOKENIZER_FILE).is_file():
        load_tokenizer(folder, recipe.model_config())
        accelerator.print(f"{folder} holds a fitted tokenizer already; nothing to do.")
        return 0
    pca = fit_on_source(open_images(recipe.data, recipe.data.split), recipe, accelerator)
    if accelerator.is_main_process:
        save_tokenizer(folder, pca.cpu())
    accelerator.print(f"Finished: pre-train with --tokenizer {folder}")
    return 0
