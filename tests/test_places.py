"""Names of checkpoints and data sets: what is a path is never looked for on the Hub, and what is near is named."""

from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants
from PIL import Image

from ldae.cli import main, run_verb
from ldae.places import check_outside, check_place, find_data, is_local, near_path


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


@pytest.mark.parametrize("output_dir", ["photos", "photos/run", "elsewhere/../photos/a/run"])
def test_an_output_folder_within_the_data_is_refused(tmp_path, monkeypatch, output_dir):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    with pytest.raises(ValueError, match=r"output_dir='.*' lies in data.dataset='photos'.*outside of it"):
        check_outside("photos", output_dir)


def test_other_output_folders_are_not_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "digits"):
        (tmp_path / name).mkdir()
    check_outside("photos", "photos-run")
    check_outside("digits", "digits/run")  # the embedded images, not the folder
    check_outside(".", "s3://bucket/table")
    check_outside("namespace/name", "namespace/name/run")


def test_commands_that_train_or_write_tables_refuse_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for index in range(10):
            Image.new("RGB", (16, 16)).save(tmp_path / "photos" / name / f"{index}.png")
    checkpoint = str(Path(__file__).parent.parent / "model_cards" / "ldae-mini-cifar10")
    for command in (
        ["pretrain", "--config", "digits", "--output_dir", "photos/run"],
        ["train_tokenizer", "--config", "digits", "--output_dir", "photos/run"],
        ["finetune", checkpoint, "--output_dir", "photos/run"],
        ["deconstruct", "--config", "deconstruction/digits", "--output_dir", "photos/run"],
        ["extract_features", checkpoint, "--output_dir", "photos/run"],
    ):
        assert main([*command, "--dataset", "photos"]) == 2, command
        assert "output_dir='photos/run' lies in data.dataset='photos'" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path / "photos")
    assert main(["init", "."]) == 2
    assert "output_dir='runs/photos' lies in" in capsys.readouterr().err
    assert len(list((tmp_path / "photos").rglob("*.*"))) == 20
