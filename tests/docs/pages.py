"""The documents of the repository, and what the tests read from them."""

import re
from dataclasses import dataclass
from pathlib import Path


ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
DOCUMENTS = [
    *PAGES,
    ROOT / "CHANGELOG.md",
    ROOT / "training" / "README.md",
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "model_cards").rglob("README.md")),
]


@dataclass(frozen=True)
class Block:
    """A fenced block of code: `python` and `bash` are run by the tests, `sh` is only checked."""

    language: str
    code: str


def name(page: Path) -> str:
    """Name a document by its path in the repository."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path) -> list[Block]:
    """Return the blocks of code of a page, in order."""
    found = re.findall(r"^ *```(\w+)\n(.*?)^ *```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [Block(language, code) for language, code in found]


def commands(code: str) -> list[str]:
    """Return the commands of a shell block, without comments and with lines joined that end in a backslash."""
    lines = code.replace("\\\n", " ").splitlines()
    return [command for line in lines if (command := re.split(r"(?:^|\s)#", line)[0].strip())]
