"""Names of checkpoints and data sets: what is a path is never looked for on the Hub, and what is near is named."""

from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants

from ldae.cli import run_verb
from ldae.places import check_place, find_data, is_local, near_path


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "runs" / "digits").mkdir(parents=True)
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names that the Hub is asked for; it cannot be reached."""
    found: list[str] = []

    def ask(_api: HfApi, name: str, **_: object) -> None:
        found.append(name)
        raise ConnectionError("no network")

    monkeypatch.setattr(HfApi, "repo_info", ask)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return found


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("runs/digts", "did you mean 'runs/digits'?"),
        ("./rnus/digits", "did you mean 'runs/digits'?"),
        ("runs/none/at/all", "give a run's folder or a Hub id"),
        ("/nowhere", "give a run's folder or a Hub id"),
        ("my run", "did you mean 'runs'?"),
        ("a/b/c", "give a run's folder or a Hub id"),
    ],
)
def test_a_path_is_refused_at_once_and_the_nearest_named(name: str, near: str, asked: list[str]) -> None:
    assert is_local(name)
    with pytest.raises(ValueError, match=f"checkpoint='{name}' does not exist") as error:
        check_place(name)
    assert near in str(error.value) and not asked


def test_the_hub_is_asked_once_and_then_only_its_cache(asked: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert not is_local("someone/model") and near_path("someone/model") == ""
    check_place("someone/model")
    check_place("someone/other")
    assert asked == ["someone/model"]
    assert capsys.readouterr().err == "The Hub cannot be reached (no network); only its cache is used.\n"


@pytest.mark.parametrize("verb", ["knn", "export", "finetune", "card", "generate"])
def test_every_verb_refuses_a_misspelt_run_at_once(
    verb: str, asked: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    required = {"export": ["--format", "timm", "--output_dir", "out"]}.get(verb, [])
    assert run_verb(verb, ["runs/digts", *required]) == 2
    error = capsys.readouterr().err
    assert "did you mean 'runs/digits'?" in error and error.count("\n") == 1
    assert not asked


def test_a_runs_data_are_found_from_elsewhere(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = here / "runs" / "digits" / "recipe.yaml"
    assert find_data("data", recipe) == "data" and find_data("digits", recipe) == "digits"
    monkeypatch.chdir(here / "runs")
    assert find_data("data", recipe) == "../data" and find_data("./dat*", recipe) == "../dat*"
    assert find_data("someone/data", recipe) == "someone/data"
    with pytest.raises(ValueError, match=r"dataset='\./other' of .*recipe.yaml is neither here .*; give --dataset"):
        find_data("./other", recipe)
