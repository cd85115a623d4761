"""Regenerate the tables of docs/options.md and the whole of docs/commands.md: python docs/field_tables.py"""

import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from ldae.deconstruct.preset import GenerationOptions, ProbeOptions, SweepOptions
from ldae.options import describe
from ldae.options.describe import Option
from ldae.options.help import markdown_table, option_groups
from ldae.sections import DataConfig, FineTuningConfig, ResNetClassifierConfig, TokenizerConfig, TrainingConfig
from ldae.training.recipe import MODEL_OPTIONS, model_options
from ldae.verbs import VERBS, Verb


DOCS = Path(__file__).parent
SECTIONS = {
    "data": DataConfig,
    "tokenizer": TokenizerConfig,
    "finetuning": FineTuningConfig,
    "training": TrainingConfig,
    "sweep": SweepOptions,
    "classifier": ResNetClassifierConfig,
    "probe": ProbeOptions,
    "generation": GenerationOptions,
}
INTRODUCTION = """# Commands

<!-- Written by docs/field_tables.py from the options' declarations. -->

`ldae COMMAND --help` prints the same. Values are YAML: `1e6`, `true`, `null`, `'[0.5, 1]'`. Write `--option VALUE` or
`--option=VALUE`, with `-` or `_` in names.
"""
# Where the sections of a verb's file are documented.
FILES = {
    "doctor": "[a recipe](options.md#recipes)",
    "train_tokenizer": "[a recipe](options.md#recipes)",
    "pretrain": "[a recipe](options.md#recipes)",
    "finetune": "[data](options.md#data), [finetuning](options.md#finetuning) and [training](options.md#training)",
    "deconstruct": "[a preset](options.md#presets-of-the-trajectory)",
}


def field_tables() -> dict[str, str]:
    """Return the markdown table of each section, by its heading."""
    tables = {
        "`model:`": _table([*MODEL_OPTIONS, *model_options("ldae")]),
        "`model:` of a DDAE": _table(model_options("ddae")),
    }
    return tables | {f"`{section}:`": _table(describe(kind)) for section, kind in SECTIONS.items()}


def commands_page() -> str:
    """Return the page of all commands: what each does, its own options, and folded those that it shares."""
    parts = [INTRODUCTION]
    for group, verbs in groupby(VERBS.values(), key=lambda verb: verb.group):
        parts.append(f"## {group.capitalize()}\n")
        parts += [_command(verb) for verb in verbs]
    return "\n".join(parts)


def _command(verb: Verb) -> str:
    name, groups = verb.name, option_groups(verb.options)
    words = [option.name.upper() for option in groups.get("arguments", [])]
    own = [*groups.pop("arguments", []), *groups.pop("options", [])]
    if name in FILES:  # a few options, which are not worth folding
        own, groups = [*own, *(option for options in groups.values() for option in options)], {}
    summary = " ".join((verb.options.__doc__ or "").partition("Args:")[0].split())
    parts = [f"### {name}\n", f"**`{' '.join(['ldae', name, *words])}`**\n", f"{summary}\n", _table(own)]
    for title, options in groups.items():
        parts.append(f"<details markdown><summary>{title}</summary>\n\n{_table(options)}\n</details>\n")
    if name in FILES:
        parts.append(f"Also every field of {FILES[name]}, by its name.\n")
    return "\n".join(parts)


def _table(options: Sequence[Option]) -> str:
    return re.sub(r"\[(`\w+`)\](?!\()", r"\1", markdown_table(options))  # [`Name`] is no link here


def main() -> None:
    page = DOCS / "options.md"
    text = page.read_text(encoding="utf-8")
    for heading, table in field_tables().items():
        start = text.index("\n| ", text.index(f"\n### {heading}\n")) + 1
        end = re.compile(r"\n(?!\|)").search(text, start)
        assert end is not None
        text = text[:start] + table + text[end.end() :]
    page.write_text(text, encoding="utf-8")
    (DOCS / "commands.md").write_text(commands_page(), encoding="utf-8")


if __name__ == "__main__":
    main()
