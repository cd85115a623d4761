"""What the site needs beyond mkdocs: pages for files of the repository, and links from names in docstrings."""

import json
import posixpath
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page


ROOT = Path(__file__).parents[1]
SHOWN = (
    "training/recipes/**/*.yaml",
    "training/accelerate/*.yaml",
    "training/launch/*",
    "notebooks/*.ipynb",
    "training/results/README.md",
    "model_cards/**/README.md",
    "model_cards/*/pictures/*.png",
    "benchmarks/README.md",
    "CHANGELOG.md",
    "RELEASING.md",
)
LANGUAGES = {".yaml": "yaml", ".sh": "sh", ".sbatch": "sh"}  # files that become pages with their text
LINK = re.compile(r"(?<=\]\()(?!\w+:|#)([^)#]+)")  # the path of a relative link
NAME = re.compile(r"\[`~?([\w.]+)`\](?![(\[])")  # [`LDAEModel`], as transformers' docstrings link
OBJECT = re.compile(r"^::: ([\w.]+)", re.MULTILINE)
ARGUMENT = re.compile(r"^( +[\w*, ]+ \()(.+?)(?=\): )", re.MULTILINE)  # name (`int`, *optional*): what it is
EXAMPLE = re.compile(r"^( *)Example:$", re.MULTILINE)  # griffe's section of code is called Examples


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files of the repository that pages link to; files of `LANGUAGES` and notebooks become pages."""
    for path in sorted(path for pattern in SHOWN for path in ROOT.glob(pattern)):
        name = path.relative_to(ROOT).as_posix()
        if path.suffix in LANGUAGES:
            # In searches behind the guides and the reference.
            front = "---\nsearch: {boost: 0.2}\n---\n\n"
            content = f"{front}# {path.name}\n\n`{name}`\n\n```{LANGUAGES[path.suffix]}\n{path.read_text()}```\n"
            file = File.generated(config, f"{name}.md", content=content)
        elif path.suffix == ".ipynb":
            file = File.generated(config, f"{name}.md", content=notebook_page(path))
        else:
            file = File.generated(config, name, abs_src_path=str(path))
        file.inclusion = InclusionLevel.NOT_IN_NAV
        files.append(file)
    return files


def notebook_page(path: Path) -> str:
    """Write a notebook, with its stored outputs, as markdown."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```sh\n{source[1:]}\n```" if source.startswith("!") else f"```python\n{source}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {})
            text = "".join(output.get("text", data.get("text/plain", "")))
            if "image/png" in data:
                parts.append(f'<img alt="output" src="data:image/png;base64,{data["image/png"].strip()}">')
            elif text:
                parts.append(f"```text\n{text.rstrip()}\n```")
    return "\n\n".join(parts) + "\n"


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links that lead out of docs/ to the pages that `on_files` added."""
    uri = page.file.src_uri
    in_docs = page.file.generated_by is None
    here = posixpath.dirname(f"docs/{uri}" if in_docs else uri)

    def rewrite(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(here, match[1]))
        if (ROOT / target / "README.md").is_file():
            target += "/README.md"
        target = f"{target}.md" if target.endswith((*LANGUAGES, ".ipynb")) else target.removeprefix("docs/")
        return posixpath.relpath(target, posixpath.dirname(uri) or ".")

    return LINK.sub(rewrite, markdown)


class LinkNames(griffe.Extension):
    """Link [`Name`] in docstrings to the name's place in the reference, where it has one."""

    def __init__(self) -> None:
        text = "\n".join(path.read_text() for path in sorted((ROOT / "docs" / "api").glob("*.md")))
        self.places = {name.rpartition(".")[2]: name for name in OBJECT.findall(text)}

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the names in an object's docstring."""
        if obj.docstring is not None:
            text = EXAMPLE.sub(r"\1Examples:", obj.docstring.value)
            default = r", defaults to .*" if getattr(obj, "parameters", ()) else r"(?!)"  # a signature has it already
            plain = re.compile(rf"[`*\[\]~]|{default}")
            text = ARGUMENT.sub(lambda match: match[1] + plain.sub("", match[2]), text)
            obj.docstring.value = NAME.sub(self._link, text)

    def _link(self, match: re.Match[str]) -> str:
        name = match[1].rpartition(".")[2]
        return f"[`{name}`][{self.places[name]}]" if name in self.places else f"`{name}`"
