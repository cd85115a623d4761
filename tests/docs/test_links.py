"""Relative links and pictures in the documents lead to files and headings that exist."""

import re
from collections import Counter
from pathlib import Path

import pytest
from markdown.extensions.toc import slugify

from tests.docs.pages import DOCUMENTS, ROOT, name


def prose(page: Path) -> str:
    """Return the text of a document without its blocks of code."""
    return re.sub(r"^ *```.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> list[str]:
    """Return the anchors of a document's headings, which GitHub and mkdocs make in the same way."""
    headings = [re.sub(r"[`*]", "", text).strip() for text in re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)]
    anchors = [slugify(heading, "-") for heading in headings]
    github = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
    return [anchor for anchor, other in zip(anchors, github, strict=True) if anchor == other]


def broken(page: Path) -> list[str]:
    """Return the links of a document that lead nowhere."""
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)[^)]*\)", prose(page)):
        if re.match(r"https?:|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            wrong.append(target)
    return wrong


@pytest.mark.parametrize("page", DOCUMENTS, ids=name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    assert broken(page) == []


def test_a_link_to_a_missing_file_or_heading_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A title\n[a](#a-title) [b](#other) [c](missing.md) [d](page.md#a-title) [e](https://example.org)"
    )
    assert broken(page) == ["#other", "missing.md"]


@pytest.mark.parametrize("page", DOCUMENTS, ids=name)
def test_headings_that_are_linked_to_are_not_ambiguous(page: Path) -> None:
    linked = {target.partition("#")[2] for other in DOCUMENTS for target in re.findall(r"\]\(([^)\s]+)", prose(other))}
    assert [anchor for anchor, n in Counter(anchors(page)).items() if n > 1 and anchor in linked] == []


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").rglob("*.md"):
        assert f" {page.relative_to(ROOT / 'docs').as_posix()}\n" in navigation, page
