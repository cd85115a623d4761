"""`ldae pretrain --config FILE.yaml [--field value ...]`: pre-train from a recipe, or go on where it was stopped."""

import argparse

from ldae.training.pretraining import pretrain
from ldae.training.recipe import load_recipe, parse_overrides


def parse_recipe_arguments(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    """Read `--config` and the parser's own options; everything else is a field of the recipe, in `recipe`."""
    parser.add_argument("--config", metavar="FILE.yaml", help="the recipe; without one, every field is its default")
    parser.epilog = "Any field of the recipe can be given as --field value (see training/README.md for all of them)."
    options, rest = parser.parse_known_args(arguments)
    options.recipe = load_recipe(options.config, parse_overrides(rest))
    return options


def main(arguments: list[str]) -> int:
    """Run the verb; the exit status is 0 on a finished run."""
    parser = argparse.ArgumentParser("ldae pretrain", description="Pre-train from a recipe. The same command resumes.")
    options = parse_recipe_arguments(parser, arguments)
    pretrain(options.recipe)
    return 0
