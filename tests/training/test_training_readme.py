"""training/README.md keeps step with the code: fields and defaults, error messages, recipes, launch files."""

import re
from pathlib import Path

import pytest
from training.field_tables import field_tables

from ldae.deconstruct.preset import KEYS


ROOT = Path(__file__).parents[2]
README = (ROOT / "training" / "README.md").read_text()


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the table below a heading."""
    section = re.split(r"\n#+ ", README.split(f"\n{heading}\n")[1])[0]
    table = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]


@pytest.mark.parametrize("heading", field_tables())
def test_tables_of_fields_are_those_that_the_code_prints(heading):
    section = re.split(r"\n#+ ", README.split(f"\n### {heading}\n")[1])[0]
    assert field_tables()[heading] in section, "run: python training/field_tables.py"


def test_every_key_of_a_preset_is_explained():
    assert [name.strip("`") for name, _, _ in rows("### Presets")] == list(KEYS)


def test_every_explained_message_is_one_of_the_code():
    source = "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    messages = [row[0].strip("`") for row in rows("## What an error means")]
    assert len(messages) > 15
    assert [message for message in messages if message not in source] == []


def test_every_recipe_and_launch_file_is_named():
    for path in (ROOT / "training" / "recipes").glob("*.yaml"):
        assert f"({path.relative_to(ROOT / 'training')})" in README, path
    for path in (ROOT / "training" / "recipes" / "deconstruction").glob("[!0-9]*.yaml"):
        assert f"({path.relative_to(ROOT / 'training')})" in README, path
    for path in (ROOT / "training" / "accelerate").glob("*.yaml"):
        assert path.name in README, path
    for name in re.findall(r"training/[\w/]+\.(?:yaml|py)", README):
        assert (ROOT / name).is_file(), name
