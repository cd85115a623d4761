"""The verbs that only read options and recipes, and need neither torch nor the models: recipes and completion.

Each takes its options and returns the exit status.
"""

import json
from pathlib import Path
from typing import Any

from ldae.deconstruct.preset import KEYS
from ldae.options import describe, did_you_mean, read_yaml
from ldae.options.completion import Command, bash_completion, zsh_completion
from ldae.options.help import json_schema
from ldae.training.recipe import recipe_files, recipe_options
from ldae.verbs import VERBS
from ldae.verbs.options.start import CompletionOptions, RecipesOptions


TAKES_RECIPE = {"pretrain": "config", "train_tokenizer": "config", "recipes": "name"}  # the option of each verb


def recipes(options: RecipesOptions) -> int:
    """Run `ldae recipes`.

    Raises:
        ValueError: If there is no recipe of this name.
    """
    known = recipe_files()
    if options.schema:
        print(json.dumps(recipe_schema(), indent=2))
    elif options.name is None:
        presets = {name for name, path in known.items() if read_yaml(path).keys() & set(KEYS)}
        _show("Recipes, for ldae pretrain --config NAME", {name: known[name] for name in known if name not in presets})
        _show("Presets, for ldae deconstruct --config NAME", {name: known[name] for name in known if name in presets})
    elif options.name in known:
        print(known[options.name].read_text(encoding="utf-8"), end="")
    else:
        raise ValueError(f"name={options.name!r} is not a recipe{did_you_mean(options.name, known, 'ldae recipes ')}")
    return 0


def _show(title: str, files: dict[str, Path]) -> None:
    print(f"{title}:")
    for name, path in files.items():
        first_line = path.read_text(encoding="utf-8").partition("\n")[0]
        print(f"  {name:40s} {first_line.removeprefix('# ')}")


def recipe_schema() -> dict[str, Any]:
    """Return the JSON schema of a recipe."""
    sections = recipe_options()
    model = [option for name, fields in sections.items() if name.startswith("model") for option in fields]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "ldae recipe",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "base": {"type": "string", "description": "Recipe that this one changes, relative to its folder."},
            "model": json_schema(model),
            **{name: json_schema(fields) for name, fields in sections.items() if not name.startswith("model")},
        },
    }


def completion(options: CompletionOptions) -> int:
    """Run `ldae completion`."""
    write = bash_completion if options.shell == "bash" else zsh_completion
    print(write("ldae", {verb: _command(verb) for verb in VERBS}), end="")
    return 0


def _command(verb: str) -> Command:
    kind = VERBS[verb].options
    fields = kind.sections().values() if hasattr(kind, "sections") else []
    options = [*describe(kind), *(option for section in fields for option in section)]
    names = list(recipe_files())
    return Command(VERBS[verb].summary, options, {TAKES_RECIPE[verb]: names} if verb in TAKES_RECIPE else {})
