"""Reports as lists of sections, rendered to Markdown with separate pictures, or to one HTML file."""

import base64
import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from ldae.files import write_whole


MEDIA_TYPES = {".png": "image/png", ".svg": "image/svg+xml"}

STYLE = """
:root { color-scheme: light; }
body { margin: 0 auto; padding: 1rem; max-width: 60rem; background: #fff; color: #24282d;
       font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0.5rem 0 0.25rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 0.5rem; padding-top: 0.8rem; border-top: 1px solid #e3e6ea; }
p, figcaption { max-width: 46rem; }
figure { margin: 1rem 0; }
figure img { max-width: 100%; height: auto; display: block; }
figcaption { font-size: 0.85rem; color: #5a626b; margin-top: 0.35rem; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.3rem 0.6rem; text-align: left; border-bottom: 1px solid #e3e6ea; vertical-align: top; }
th { font-weight: 600; border-bottom: 2px solid #c9ced4; white-space: nowrap; }
td:nth-child(2):not(.number) { min-width: 9rem; }
td.number { text-align: right; white-space: nowrap; }
code { font: 0.85em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; background: #f3f5f7;
       padding: 0.05em 0.3em; border-radius: 3px; overflow-wrap: anywhere; }
td code { white-space: nowrap; }
"""


@dataclass(frozen=True)
class Picture:
    """A picture of a report, with its file, a text alternative and a caption."""

    path: Path
    alt: str
    caption: str


@dataclass(frozen=True)
class Table:
    """A table with a head and rows of text. Columns named in `numbers` are aligned to the right."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[str] = ()


@dataclass(frozen=True)
class Section:
    """A heading with its paragraphs (`str`, with `code` and *emphasis*), tables and pictures."""

    title: str
    blocks: Sequence[str | Table | Picture]


def render_markdown(title: str, sections: Sequence[Section], folder: Path) -> str:
    """Render a report as Markdown.

    Args:
        title (`str`): Title of the report.
        sections (`Sequence[Section]`): Sections of the report; the heading of the first is left out.
        folder (`Path`): Folder of the file, for the relative paths of pictures.

    Example:
        ```python
        >>> from pathlib import Path
        >>> from ldae.reports.document import Section, Table, render_markdown
        >>> section = Section("", ["Two rows.", Table(["row", "acc"], [["0", "57.5"]])])
        >>> print(render_markdown("Report", [section], Path(".")))
        # Report
        <BLANKLINE>
        Two rows.
        <BLANKLINE>
        | row | acc |
        |---|---|
        | 0 | 57.5 |
        <BLANKLINE>

        ```
    """
    lines = [f"# {title}", ""]
    for index, section in enumerate(sections):
        lines += [f"## {section.title}", ""] if index else []
        for block in section.blocks:
            if isinstance(block, Table):
                rule = "|".join("---:" if name in block.numbers else "---" for name in block.head)
                lines += [_markdown_row(block.head), f"|{rule}|", *map(_markdown_row, block.rows), ""]
            elif isinstance(block, Picture):
                lines += [f"![{block.alt}]({block.path.relative_to(folder).as_posix()})", "", f"*{block.caption}*", ""]
            else:
                lines += [block, ""]
    return "\n".join(lines)


def render_html(title: str, sections: Sequence[Section]) -> str:
    """Render a report as one HTML file, style and pictures included; see [`render_markdown`] for the arguments."""
    parts = [f"<h1>{_inline(title)}</h1>"]
    for index, section in enumerate(sections):
        inner = [f"<h2>{_inline(section.title)}</h2>"] if index else []
        inner += [_html_block(block) for block in section.blocks]
        parts.append("<section>\n" + "\n".join(inner) + "\n</section>")
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body>\n</html>\n"
    )


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as .png or .svg in one step; equal figures give equal bytes.

    Args:
        figure (`Figure`): The figure.
        path (`Path`): The file; its folder is created.

    Returns:
        `path`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    if path.suffix == ".svg":
        with matplotlib.rc_context({"svg.hashsalt": path.name}):
            FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None, "Creator": None})
    else:
        figure.set_dpi(144)
        FigureCanvasAgg(figure).print_png(buffer)
    write_whole(path, buffer.getvalue())
    return path


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _html_block(block: str | Table | Picture) -> str:
    if isinstance(block, Picture):
        kind, content = MEDIA_TYPES[block.path.suffix], base64.b64encode(block.path.read_bytes()).decode()
        return (
            f'<figure><img src="data:{kind};base64,{content}" alt="{html.escape(block.alt)}">'
            f"<figcaption>{_inline(block.caption)}</figcaption></figure>"
        )
    if isinstance(block, str):
        return f"<p>{_inline(block)}</p>"
    head = "".join(f"<th>{_inline(cell)}</th>" for cell in block.head)
    rows = []
    for row in block.rows:
        marked = zip(block.head, row, strict=True)
        cells = (
            f'<td class="number">{_inline(c)}</td>' if n in block.numbers else f"<td>{_inline(c)}</td>"
            for n, c in marked
        )
        rows.append(f"<tr>{''.join(cells)}</tr>")
    body = "\n".join(rows)
    return f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def _inline(text: str) -> str:
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))
    return re.sub(r"(?<![\w*])\*([^*<>]+)\*(?![\w*])", r"<em>\1</em>", text)
