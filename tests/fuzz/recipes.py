"""Damaged recipes and presets: those that come with ldae are read, a tiny one is also trained from."""

import dataclasses
import math
import random
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from ldae.deconstruct.preset import Preset, load_preset
from ldae.deconstruct.runner import Deconstruction
from ldae.results import read_results
from ldae.training.recipe import load_recipe, recipes_folder
from tests.training.conftest import TINY

from .damage import damage_bytes, damage_mapping
from .judge import Case, by_call, by_verb, chance_of


COUNT = 300
TRAINED = 6  # each so-manieth case trains from what it accepts


@cache
def shipped() -> tuple[Path, ...]:
    return tuple(sorted(recipes_folder().rglob("*.yaml")))


def case(seed: int, number: int, ground: Path) -> Case:
    chance = chance_of("recipes", seed, number)
    source = None if number % TRAINED == 0 else shipped()[number % len(shipped())]
    text = yaml.safe_dump(TINY) if source is None else source.read_text(encoding="utf-8")
    what, damaged, fields = damage_recipe(text, chance)
    name = f"case-{number}.yaml"
    large = {"model", "intermediate_size"} & set(fields)  # perhaps a model that takes minutes to train

    def run() -> str | None:
        if source is None:
            file = ground / name
            file.write_bytes(damaged)
            return by_call(use, load_recipe, file, {}) if large else train(file, ground / f"run-{number}")
        copies = ground / "recipes"  # bases and rows are looked for beside a file
        if not copies.exists():
            shutil.copytree(recipes_folder(), copies)
        file = copies / source.relative_to(recipes_folder()).with_name(name)
        file.write_bytes(damaged)
        is_preset = source.parent.name == "deconstruction" and not source.name[0].isdigit()
        try:
            overrides = {"dataset": "digits"} if source.name == "own_images.yaml" else {}  # which leaves it open
            return by_call(use, load_preset if is_preset else load_recipe, file, overrides)
        finally:
            file.unlink()

    general = {"base", "model", "recipes"} & set(fields)  # then the message is about what lacks it
    names = (*fields, name, "dataset is missing") if fields and not general else ()
    return Case(f"{'tiny' if source is None else source.name}: {what}", run, names)


def damage_recipe(text: str, chance: random.Random) -> tuple[str, bytes, tuple[str, ...]]:
    """Change a field, a line or bytes; returns what was done, the file, and the fields if it was in some."""
    kind = chance.choice(("field", "field", "field", "field", "line", "bytes"))
    if kind == "bytes":
        what, damaged = damage_bytes(text.encode(), chance)
        return what, damaged, ()
    if kind == "line":
        lines = text.splitlines()
        at = chance.choice([i for i, line in enumerate(lines) if ":" in line and not line.startswith("#")])
        done = chance.choice(("twice", "tab", "indent", "no colon", "anchor", "tag"))
        line = lines[at]
        lines[at : at + 1] = {
            "twice": [line, line],
            "tab": ["\t" + line],
            "indent": ["   " + line],
            "no colon": [line.replace(":", "", 1)],
            "anchor": [line.replace(":", ": *nothing", 1)],
            "tag": [line.replace(":", ": !!python/object/apply:os.getcwd []", 1)],
        }[done]
        return f"line {at + 1} {done}", "\n".join(lines).encode(), ()
    what, content, *fields = damage_mapping(yaml.safe_load(text), chance)
    if chance.random() < 0.1:
        more, content, field = damage_mapping(content or {"x": 1}, chance)
        what, fields = f"{what}, {more}", [*fields, field]
    return what, yaml.safe_dump(content, allow_unicode=True).encode(), tuple(fields)


def use(load: Any, file: Path, overrides: dict[str, str]) -> None:
    """Read a file, and write what it holds again: both are the same, and no number of it is not finite."""
    recipe = load(file, overrides)
    if isinstance(recipe, Preset):
        Deconstruction(recipe, file.with_name("out"))  # checks the recipe of every row
        finite(dataclasses.asdict(recipe))
        return
    resolved = recipe.resolved()
    finite(resolved)
    again = file.with_name(f"again-{file.name}")
    recipe.save(again)
    assert load(again, {}).resolved() == resolved, "written and read again it is another"


def finite(value: Any, place: str = "") -> None:
    """Refuse nothing: a number that is not finite should have been refused before."""
    if isinstance(value, dict):
        for name, item in value.items():
            finite(item, f"{place}.{name}")
    elif isinstance(value, list | tuple):
        for item in value:
            finite(item, place)
    else:
        assert not isinstance(value, float) or math.isfinite(value), f"{place}={value!r} was accepted"


def train(file: Path, folder: Path) -> str | None:
    """Pre-train two steps."""
    refusal = by_verb("pretrain", "--config", file, "--output_dir", folder, "--images", 64)
    if refusal is None:
        finite(read_results(folder))
    return refusal
