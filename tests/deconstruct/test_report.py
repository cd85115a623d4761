"""The report: its numbers are those of results.json, its HTML needs nothing beside it, what is missing is said."""

import base64
import io
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldae.deconstruct.collect import Summary, collect
from ldae.deconstruct.figures import trajectory_figure
from ldae.deconstruct.preset import load_preset
from ldae.deconstruct.report import write_report
from ldae.reports.paper_figures import TRAJECTORY, paper_step
from ldae.results import read_results


FIGURES = {
    "trajectory.svg",
    "dimensions.svg",
    "blocks-12_ldae.svg",
    "timesteps-12_ldae.svg",
    "filters.png",
    "schedules.svg",
    "noise.png",
    "denoising.png",
    "samples.png",
}


class Reader(HTMLParser):
    """Collects what an HTML file refers to, its tables and its headings."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tables: list[list[list[str]]] = []
        self.headings: list[str] = []
        self.open: str | None = None

    def handle_starttag(self, tag, attrs):
        self.sources += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag in ("td", "th", "h1", "h2"):
            self.open = tag
            self.headings += [""] if tag.startswith("h") and tag != "th" else []

    def handle_endtag(self, tag):
        self.open = None if tag == self.open else self.open

    def handle_data(self, data):
        if self.open in ("td", "th"):
            self.tables[-1][-1][-1] += data
        elif self.open in ("h1", "h2"):
            self.headings[-1] += data


def read(folder: Path) -> Reader:
    reader = Reader()
    reader.feed((folder / "report.html").read_text())
    return reader


def rows_of(table: list[list[str]]) -> dict[str, dict[str, str]]:
    """A table by its first column; of columns with one name the first."""
    return {row[0]: {name: row[i] for i, name in reversed(list(enumerate(table[0])))} for row in table[1:]}


def test_html_is_self_contained_and_holds_every_figure(finished):
    _, folder = finished
    text, reader = (folder / "report.html").read_text(), read(folder)
    assert all(source.startswith("data:image/") for source in reader.sources)
    assert not re.search(r"<(script|link|iframe)|url\(|@import|https?://", re.sub(r"base64,[^\"]*", "", text))
    assert 'name="viewport"' in text
    pictures = [base64.b64decode(source.partition("base64,")[2]) for source in reader.sources]
    names = re.findall(r"!\[[^]]*\]\(([^)]+)\)", (folder / "report.md").read_text())
    assert {Path(name).name for name in names} == FIGURES
    assert pictures == [(folder / name).read_bytes() for name in names]
    for picture in pictures:
        if picture.startswith(b"\x89PNG"):
            assert np.asarray(Image.open(io.BytesIO(picture)).convert("L")).std() > 1
        else:
            assert b"<svg" in picture and not re.search(rb"(href|src)=\"https?:", picture)


def test_its_numbers_are_those_of_the_runs_and_of_the_paper(finished):
    _, folder = finished
    table = rows_of(read(folder).tables[0])
    assert list(table) == ["0", "7", "12"]
    for number, name in {"0": "00_dit", "7": "07_patch_pca", "12": "12_ldae"}.items():
        for column, point in (("ours, searched point, %", "searched"), ("ours, t = 10, %", "paper")):
            values = [
                next(
                    e["value"]
                    for e in read_results(folder / "rows" / name / f"seed-{seed}")
                    if e["protocol"]["study"] == "row" and e["protocol"]["point"] == point
                )
                for seed in (0, 1)
            ]
            stderr = np.std(values, ddof=1) / np.sqrt(2)
            assert table[number][column] == f"{100 * np.mean(values):.1f} ± {100 * stderr:.1f}"
        assert table[number]["seeds"] == "2" and table[number]["images seen"] == "192"
        assert table[number]["paper, %"] == f"{paper_step(name.split('_')[0]).accuracy}"
        assert table[number]["command"] == f"--rows {number}"
    fids = [read_results(folder / "rows" / "00_dit" / f"seed-{seed}") for seed in (0, 1)]
    fids = [entry["value"] for entries in fids for entry in entries if entry["metric"] == "FID-40"]
    assert table["0"]["FID-40, ours"].startswith(f"{np.mean(fids):.1f} ± ") and table["0"]["FID-50K, paper"] == "11.6"
    assert table["12"]["FID-40, ours"] == ""


def test_every_part_of_the_paper_is_there(finished):
    _, folder = finished
    reader = read(folder)
    assert reader.headings[0] == "From DiT to l-DAE on digits"
    assert reader.headings[1:] == [
        "The trajectory",
        "Accuracy by latent dimension",
        "What an encoder must beat",
        "Where and when features are read",
        "Tokenizers",
        "Noise",
        "Denoising",
        "Samples",
        "How it was measured",
    ]
    heads = [table[0] for table in reader.tables]
    assert ["block", "1", "2"] in heads and ["t", "0", "80"] in heads
    text = (folder / "report.md").read_text()
    for said in (
        "converged logistic probe (cached protocol",
        "120 test images",
        "192 images seen",
        "2 pre-training seeds",
        "CPU, ",
    ):
        assert said in text, said
    assert re.search(r"(Rows ahead of all three: [\d, ab]+|No row is ahead of all three)\.", text)
    assert "far smaller than the paper's" in text and "512 million images" in text


def test_no_table_puts_knn_and_linear_in_one_column(finished):
    _, folder = finished
    for table in read(folder).tables:
        assert not any("kNN" in cell for row in table for cell in row)


def test_rows_that_are_missing_are_said_to_be(finished, tmp_path, write_preset):
    _, folder = finished
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    write_report(load_preset(write_preset()), copy)
    table = rows_of(read(copy).tables[0])
    assert len(table) == len(TRAJECTORY)
    assert {number for number, row in table.items() if row["ours, searched point, %"] != "not run"} == {"0", "7", "12"}
    assert "3 of 15 rows are measured. Not run: 1 (no class conditioning), 2 (" in (copy / "report.md").read_text()


def test_a_preset_that_was_run_into_the_same_folder_is_shown_too(finished, tmp_path, write_preset):
    _, folder = finished
    found = collect(load_preset(write_preset(rows=[12])), folder)
    assert [row.variant.key for row in found.rows] == ["00", "07", "12"]
    assert [result.variant.key for result in found.sweep] == ["pca-2"]


def test_an_empty_folder_gives_a_report_of_what_is_to_come(write_preset, tmp_path):
    write_report(load_preset(write_preset()), tmp_path)
    reader = read(tmp_path)
    assert reader.headings[1:] == ["The trajectory", "How it was measured"]
    assert {row["ours, searched point, %"] for row in rows_of(reader.tables[0]).values()} == {"not run"}


def test_the_same_folder_gives_the_same_bytes(finished, tmp_path):
    preset, folder = finished
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    first = write_report(load_preset(preset), copy).read_bytes()
    assert write_report(load_preset(preset), copy).read_bytes() == first


@pytest.mark.parametrize("stderr", [None, 0.02])
def test_bars_are_as_long_as_their_numbers_and_errors_are_drawn(stderr):
    summary = Summary(0.62, stderr, 1 if stderr is None else 3, ({},))
    rows = [
        ("0", "first", summary, paper_step("00")),
        ("1", "second", None, paper_step("01")),
        ("x", "own", summary, None),
    ]
    names, left, right = trajectory_figure(rows, separators=[1]).axes
    assert [(round(bar.get_width(), 6), bar.get_y() + bar.get_height() / 2) for bar in left.patches] == [
        (62, 0),
        (62, 2),
    ]
    assert [bar.get_width() for bar in right.patches] == [57.5, 62.5]
    assert left.get_xlim()[0] < 62 < left.get_xlim()[1] and left.get_xlim()[0] % 5 == 0
    assert len(left.containers) - len(left.patches) == (0 if stderr is None else 2)
    assert [text.get_text() for text in names.texts] == ["0", "first", "1", "second", "x", "own"]
    assert "not run" in [text.get_text() for text in left.texts]
    assert not left.lines or all(line.get_marker() != "D" for line in left.lines)


def test_accuracies_at_t_10_are_drawn_beside_the_bars():
    summary = Summary(0.62, None, 1, ({},))
    rows = [("0", "first", summary, paper_step("00")), ("1", "second", None, paper_step("01"))]
    _, left, _ = trajectory_figure(rows, at_paper=[Summary(0.31, None, 1, ({},)), None]).axes
    (line,) = [line for line in left.lines if line.get_marker() == "D"]
    assert line.get_xydata().tolist() == [[31, 0]]
    assert left.get_xlim()[0] < 31 and left.get_xlim()[1] > 62
