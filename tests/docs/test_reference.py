"""The site keeps step with the code: fields and defaults, error messages, recipes, launch files, public names."""

import re
import tomllib
from pathlib import Path

import pytest
from docs.field_tables import commands_page, field_tables

import ldae
import ldae.data
import ldae.evaluation
import ldae.export
from ldae.deconstruct.preset import KEYS
from ldae.verbs import VERBS
from tests.docs.pages import PAGES, ROOT, name


DOCS = ROOT / "docs"
OPTIONS = (DOCS / "options.md").read_text()
EVERYTHING = "\n".join(page.read_text() for page in PAGES)


def rows(page: Path, heading: str) -> list[list[str]]:
    """Return the cells of the table below a heading."""
    section = re.split(r"\n#+ ", page.read_text().split(f"{heading}\n")[1])[0]
    table = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table]


@pytest.mark.parametrize("heading", field_tables())
def test_tables_of_fields_are_those_that_the_code_prints(heading: str) -> None:
    section = re.split(r"\n#+ ", OPTIONS.split(f"\n### {heading}\n")[1])[0]
    assert field_tables()[heading] in section, "run: python docs/field_tables.py"


def test_the_page_of_commands_is_what_the_code_prints() -> None:
    assert (DOCS / "commands.md").read_text() == commands_page(), "run: python docs/field_tables.py"


def test_every_key_of_a_preset_is_explained() -> None:
    explained = rows(DOCS / "trajectory.md", "## Your own preset")
    assert [key.strip("`") for key, _, _ in explained] == list(KEYS)


def test_commands_in_the_text_are_commands() -> None:
    named = re.findall(r"`ldae\s+([a-z]\w*)", EVERYTHING)
    assert len(named) > 50 and set(named) <= set(VERBS)


def test_every_explained_message_is_one_of_the_code() -> None:
    source = "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    messages = [row[0].strip("`") for row in rows(DOCS / "errors.md", "# What an error means")]
    assert len(messages) > 15
    assert [message for message in messages if message not in source] == []


def test_the_numbers_of_the_readme_are_among_the_results() -> None:
    results = [float(x) for x in re.findall(r"\d+\.\d+", (DOCS / "results.md").read_text())]
    table = "\n".join(line for line in (ROOT / "README.md").read_text().splitlines() if " % " in line)
    numbers = [float(x) for x in re.findall(r"(\d+\.\d+)(?= %| ±)", table)]
    assert len(numbers) == 13
    assert [x for x in numbers if min(abs(x - y) for y in results) > 0.0501] == []


def test_every_dependency_has_a_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [name for extra, names in project["optional-dependencies"].items() if extra != "dev" for name in names]
    names = [re.split(r"[>=<\[]", name)[0] for name in [*project["dependencies"], *extras]]
    explained = " ".join(row[0] for row in rows(DOCS / "install.md", "## Why each dependency is there"))
    assert [name for name in names if not re.search(rf"(?<![\w-]){name}(?![\w-])", explained)] == []


def test_every_recipe_and_launch_file_is_named() -> None:
    folder = ROOT / "training"
    recipes = [*(folder / "recipes").glob("*.yaml"), *(folder / "recipes" / "deconstruction").glob("[!0-9]*.yaml")]
    missing = [name(path) for path in recipes if f"(../{name(path)})" not in EVERYTHING]
    assert missing == []
    assert [path.name for path in (folder / "accelerate").glob("*.yaml") if path.name not in EVERYTHING] == []
    named = re.findall(r"training/[\w/]+\.(?:yaml|py)", EVERYTHING + (folder / "README.md").read_text())
    named = [path for path in named if path not in ("training/NAME.py", "training/VERB.py")]
    assert [path for path in named if not (ROOT / path).is_file()] == []
    scripts = {path.stem for path in folder.glob("*.py")}
    assert [script for script in scripts if f"`{script}.py`" not in (folder / "README.md").read_text()] == []


@pytest.mark.parametrize("module", [ldae, ldae.data, ldae.evaluation, ldae.export], ids=lambda module: module.__name__)
def test_every_public_name_is_in_the_reference(module: object) -> None:
    api = "\n".join(page.read_text() for page in (DOCS / "api").glob("*.md"))
    names = [f"::: {module.__name__}.{public}" for public in module.__all__]
    assert [line for line in names if f"{line}\n" not in api] == []
