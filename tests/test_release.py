"""A release needs one version in all places and a dated section of the changelog."""

import runpy
import shutil
from pathlib import Path

import pytest
import yaml

import ldae


ROOT = Path(__file__).parents[1]
release_notes = runpy.run_path(str(ROOT / ".ci" / "release_notes.py"))["release_notes"]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    (tmp_path / "src" / "ldae").mkdir(parents=True)
    for name in ("src/ldae/__init__.py", "CITATION.cff"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    sections = [
        "# Changelog",
        "## [Unreleased]",
        f"## [{ldae.__version__}] - 2026-01-31",
        "- New.",
        "## [0.0.1] - old",
    ]
    (tmp_path / "CHANGELOG.md").write_text("\n\n".join(sections).replace("31\n\n", "31\n"))
    return tmp_path


def test_the_notes_are_the_section_of_the_version(repository: Path) -> None:
    assert release_notes(f"v{ldae.__version__}", repository) == "- New.\n"


def test_what_disagrees_is_named(repository: Path) -> None:
    with pytest.raises(ValueError, match=r"__init__.py has version .*, and the tag is v9\.9\.9"):
        release_notes("v9.9.9", repository)
    changelog = repository / "CHANGELOG.md"
    changelog.write_text(changelog.read_text().replace("2026-01-31", "unreleased"))
    with pytest.raises(ValueError, match="no section"):
        release_notes(f"v{ldae.__version__}", repository)


def test_the_package_and_the_citation_have_the_same_version() -> None:
    assert str(yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]) == ldae.__version__


@pytest.mark.parametrize("workflow", ["ci", "release"])
def test_workflows_call_what_exists(workflow: str) -> None:
    steps = [
        step
        for job in yaml.safe_load((ROOT / ".github" / "workflows" / f"{workflow}.yml").read_text())["jobs"].values()
        for step in job["steps"]
    ]
    commands = "\n".join(step.get("run", "") for step in steps)
    called = [word for word in commands.split() if word.startswith(".ci/")]
    assert ".ci/run" in called and all((ROOT / name).is_file() for name in called)
