"""Print the notes of a release from CHANGELOG.md, if it is ready.

python .ci/release_notes.py v0.2.0
"""

import re
import sys
from pathlib import Path


ROOT = Path(__file__).parents[1]


def release_notes(tag: str, root: Path = ROOT) -> str:
    """Return the section of a version.

    Args:
        tag: `v` and the version.
        root: The repository.

    Raises:
        ValueError: If the package or the citation has another version, or the changelog no dated section of it.
    """
    version = tag.removeprefix("v")
    found = {
        "src/ldae/__init__.py": r'^__version__ = "(.*)"$',
        "CITATION.cff": r"^version: (.*)$",
    }
    for file, pattern in found.items():
        match = re.search(pattern, (root / file).read_text(encoding="utf-8"), re.MULTILINE)
        if match is None or match[1] != version:
            raise ValueError(f"{file} has version {match[1] if match else 'none'}, and the tag is {tag}.")
    changelog = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    heading = rf"^## \[{re.escape(version)}\] - \d{{4}}-\d\d-\d\d\n(.*?)(?=^## |\Z)"
    section = re.search(heading, changelog, re.MULTILINE | re.DOTALL)
    if section is None:
        raise ValueError(f"CHANGELOG.md has no section '## [{version}] - YYYY-MM-DD'.")
    if not section[1].strip():
        raise ValueError(f"the section of {version} in CHANGELOG.md is empty.")
    return section[1].strip() + "\n"


if __name__ == "__main__":
    try:
        print(release_notes(sys.argv[1]), end="")
    except ValueError as error:
        sys.exit(f"release_notes: {error}")
