"""The notebooks run from the first to the last cell, with toy budgets, and their outputs are stored."""

import json
import re
import shlex
from pathlib import Path

import pytest

from ldae.cli import main


NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))
TOY = {
    "pretrain": "--images 64 --warmup_images 0 --total_batch_size 32 --probe_every_images 0 --select_features false",
    "grid_search": "--timesteps 10,640 --num_workers 0",
}


def code_cells(path: Path) -> list[dict]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def run_cell(source: str, names: dict) -> None:
    """Run a cell as IPython would: commands in this process, with toy budgets."""
    if source.startswith("!"):
        program, verb, *arguments = shlex.split(source[1:])
        assert program == "ldae"
        toy = TOY.get(verb, "").split()
        for option in toy[::2]:  # an option may be given once
            if option in arguments:
                at = arguments.index(option)
                del arguments[at : at + 2]
        assert main([verb, *arguments, *toy]) == 0
    else:
        exec(re.sub(r"^STEPS = \d+", "STEPS = 2", source, flags=re.M), names)


def test_there_are_four_notebooks() -> None:
    assert len(NOTEBOOKS) == 4


LONG = ("is_my_encoder_any_good",)  # its verbs run in tests of their own


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=pytest.mark.slow) if path.stem in LONG else path for path in NOTEBOOKS],
    ids=lambda path: path.stem,
)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    names: dict = {"__name__": "notebook"}
    for cell in code_cells(path):
        run_cell("".join(cell["source"]), names)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_as_it_ran(path: Path) -> None:
    cells = code_cells(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert any("image/png" in output.get("data", {}) for output in outputs)
