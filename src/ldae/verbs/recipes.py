"""`ldae recipes [NAME]`: the recipes that come with ldae."""

import json
from pathlib import Path

from ldae.deconstruct.preset import KEYS
from ldae.options import did_you_mean, read_yaml
from ldae.options.help import json_schema
from ldae.training.recipe import recipe_files, recipe_options
from ldae.verbs.options.start import RecipesOptions


def run(options: RecipesOptions) -> int:
    """Run the verb; the exit status is 0."""
    if options.schema:
        print(json.dumps(recipe_schema(), indent=2))
        return 0
    known = recipe_files()
    if options.name is None:
        presets = {name for name, path in known.items() if read_yaml(path).keys() & set(KEYS)}
        _show("Recipes, for ldae pretrain --config NAME", {name: known[name] for name in known if name not in presets})
        _show("Presets, for ldae deconstruct --config NAME", {name: known[name] for name in known if name in presets})
        return 0
    if options.name not in known:
        raise ValueError(f"name={options.name!r} is not a recipe{did_you_mean(options.name, known, 'ldae recipes ')}")
    print(known[options.name].read_text(encoding="utf-8"), end="")
    return 0


def _show(title: str, files: dict[str, Path]) -> None:
    print(f"{title}:")
    for name, path in files.items():
        first_line = path.read_text(encoding="utf-8").partition("\n")[0]
        print(f"  {name:40s} {first_line.removeprefix('# ')}")


def recipe_schema() -> dict[str, object]:
    """Return the JSON schema of a recipe."""
    sections = recipe_options()
    model = [option for name, fields in sections.items() if name.startswith("model") for option in fields]
    properties: dict[str, object] = {
        name: json_schema(fields) for name, fields in sections.items() if not name.startswith("model")
    }
    base = {"type": "string", "description": "Recipe that this one changes, relative to its folder."}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "ldae recipe",
        "type": "object",
        "additionalProperties": False,
        "properties": {"base": base, "model": json_schema(model), **properties},
    }
