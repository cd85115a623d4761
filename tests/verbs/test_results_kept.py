"""Commands that measure lose no number: they look at results.json before they compute, and print before they write."""

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ldae.cli import run_verb
from tests.fuzz import ground as grounds
from tests.fuzz.commands import SMALL
from tests.processes import forget_processes


VERBS = (
    "linear_probe grid_search knn compare alignment noise_classification checkpoint_sweep generate".split()
)  # all that write results.json
MORE = {
    "compare": ["--output_dir", "out"],
    "checkpoint_sweep": ["--output_dir", "out"],
    "generate": "--fid 4 --extractor run --dataset data --num_workers 0 --cache_dir cache".split(),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    forget_processes()
    return grounds.build(tmp_path_factory.mktemp("results"))


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Iterator[Path]:
    with grounds.copied(made, tmp_path / "work", "run", "data") as folder:
        yield folder


def command(verb: str) -> tuple[list[str], Path]:
    """The verb's arguments, and its folder of results."""
    words = [*SMALL[verb], *MORE.get(verb, [])]
    return words, Path(words[words.index("--output_dir") + 1] if "--output_dir" in words else "run")


@pytest.mark.parametrize("verb", VERBS)
def test_a_broken_file_is_refused_before_anything_is_computed(
    verb: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, place = command(verb)
    place.mkdir(exist_ok=True)
    (place / "results.json").write_text('[{"metric": "accuracy", "val')
    assert run_verb(verb, words) == 2
    shown = capsys.readouterr()
    assert f"ldae {verb}: {place}/results.json is not JSON" in shown.err and "move it away" in shown.err
    assert "%" not in shown.out and not list(place.glob("pictures/*samples*"))


@pytest.mark.parametrize("verb", VERBS)
def test_a_full_disk_costs_no_number(
    verb: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, _content: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    words, place = command(verb)
    before = (place / "results.json").read_text() if (place / "results.json").exists() else None
    with monkeypatch.context() as patch:
        patch.setattr("ldae.results.write_whole", full)
        assert run_verb(verb, words) == 2
    shown = capsys.readouterr()
    error = shown.err.splitlines()[-1]
    assert "No space left on device" in error and "ake room" in error
    assert (place / "results.json").read_text() == before if before else not (place / "results.json").exists()
    forget_processes()
    assert run_verb(verb, words) == 0
    values = [entry["value"] for entry in json.loads((place / "results.json").read_text())]
    assert any(
        f"{value:.2%}" in shown.out or f"{value:.4f}" in shown.out or f"{value:.1%}" in shown.out for value in values
    )


def test_a_folder_that_cannot_be_written_to_is_refused_before_anything_is_computed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "file").touch()
    words = ["file/out" if word == "out" else word for word in SMALL["knn"]]
    assert run_verb("knn", words) == 2
    shown = capsys.readouterr()
    assert shown.err.splitlines()[-1] == (
        "ldae knn: output_dir='file/out' cannot be written to (Not a directory); give --output_dir, a folder that can."
    )
    assert shown.out == ""
