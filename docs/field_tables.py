"""Regenerate the tables of fields in docs/options.md: python docs/field_tables.py"""

import re
from pathlib import Path

from ldae.deconstruct.preset import GenerationOptions, ProbeOptions, SweepOptions
from ldae.options import describe
from ldae.options.help import markdown_table
from ldae.sections import DataConfig, FineTuningConfig, ResNetClassifierConfig, TokenizerConfig, TrainingConfig
from ldae.training.recipe import MODEL_OPTIONS, model_options


PAGE = Path(__file__).parent / "options.md"
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


def field_tables() -> dict[str, str]:
    """Return the markdown table of each section, by its heading."""
    tables = {
        "`model:`": markdown_table([*MODEL_OPTIONS, *model_options("ldae")]),
        "`model:` of a DDAE": markdown_table(model_options("ddae")),
    }
    return tables | {f"`{section}:`": markdown_table(describe(kind)) for section, kind in SECTIONS.items()}


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    for heading, table in field_tables().items():
        start = text.index("\n| ", text.index(f"\n### {heading}\n")) + 1
        end = re.compile(r"\n(?!\|)").search(text, start)
        assert end is not None
        text = text[:start] + table + text[end.end() :]
    PAGE.write_text(text, encoding="utf-8")
