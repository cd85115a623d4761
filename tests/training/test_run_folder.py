"""A run's folder: when its recipe counts, which recipes are the same, who holds it, and what it resumes from."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from ldae.errors import RunError
from ldae.files import CLAIM_FILE, FolderClaim
from ldae.training.finetuning import FineTuningTask
from ldae.training.finetuning_recipe import load_finetuning_recipe
from ldae.training.pretraining import DenoisingTask, pretrain
from ldae.training.recipe import build_recipe, differences
from ldae.training.run_folder import RunFolder
from ldae.training.tokenizer_training import train_tokenizer
from tests.data.image_files import random_pixels
from tests.training.conftest import TINY, After, stop_after, train_task


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory) -> Path:
    """The folder of a finished run with averaged weights and two checkpoints, at 96 and 128 images."""
    fields = {"images": 128, "ema_decay": 0.5, "checkpoint_every_images": 32}
    return pretrain(build_recipe(TINY, fields | {"output_dir": str(tmp_path_factory.mktemp("whole") / "run")})).path


def write_images(folder: Path, count: int) -> None:
    folder.mkdir()
    for index in range(count):
        Image.fromarray(random_pixels(16, 16, seed=index)).save(folder / f"{index}.png")


@pytest.mark.parametrize(
    "mistake",
    [
        {"dataset": "no/such/folder"},
        {"image_column": "picture"},
        {"tokenizer": "no/such/tokenizer"},
        {"micro_batch_size": 5},
        {"report_to": ["nowhere"]},
    ],
    ids=str,
)
def test_a_start_that_fails_does_not_refuse_the_corrected_command(make_recipe, mistake):
    with pytest.raises(ValueError, match=r"no/such|picture|does not divide|nowhere"):
        pretrain(make_recipe(images=32, latent_dim=5, seed=3, **mistake))
    assert pretrain(make_recipe(images=32)).records()[-1]["event"] == "finished"


def test_a_recipe_counts_from_the_first_checkpoint(make_recipe):
    stop_after(DenoisingTask(make_recipe()), 1)
    with pytest.raises(RunError, match=r"another recipe \(training.seed: 0 -> 1\)"):
        pretrain(make_recipe(seed=1))


def test_a_model_without_its_checkpoints_keeps_its_recipe(make_recipe):
    folder = pretrain(make_recipe(images=32))
    for path in folder.checkpoints.rglob("*"):
        path.unlink() if path.is_file() else None
    for path in folder.checkpoints.iterdir():
        path.rmdir()
    with pytest.raises(RunError, match="another recipe"):
        pretrain(make_recipe(images=32, seed=1))


def test_a_relative_and_an_absolute_path_are_the_same_data_set(make_recipe, tmp_path, monkeypatch):
    write_images(tmp_path / "images", count=40)
    monkeypatch.chdir(tmp_path)
    stop_after(DenoisingTask(make_recipe(dataset="images")), 1)
    folder = RunFolder.from_recipe(make_recipe())
    for dataset in (str(tmp_path / "images"), "./images", "run/../images"):
        folder.check_recipe(make_recipe(dataset=dataset))
    write_images(tmp_path / "others", count=1)
    for dataset in ("others", "digits", "images2"):
        with pytest.raises(RunError, match=r"data\.dataset: 'images' -> "):
            folder.check_recipe(make_recipe(dataset=dataset))


def test_a_glob_and_a_tokenizer_are_compared_by_where_they_lead(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tokens").mkdir()

    def sections(dataset: str, tokenizer: str) -> dict:
        return {"data": {"dataset": dataset}, "tokenizer": {"tokenizer": tokenizer}}

    ours = sections(f"{tmp_path}/images/*.parquet", f"{tmp_path}/tokens")
    assert differences(ours, sections("images/*.parquet", "tokens"), tmp_path / "run") == []
    assert len(differences(ours, sections("images/*.tar", "namespace/tokens"), tmp_path / "run")) == 2


def test_a_fine_tuning_is_extended_though_its_warm_up_follows_the_budget(make_recipe, tmp_path):
    run = pretrain(make_recipe("pretrained", images=32)).path
    fields = {"total_batch_size": 32, "num_workers": 0, "probe_every_images": 0, "output_dir": str(tmp_path / "tuned")}

    def recipe(images: int, path=None, checkpoint=run, **changes):
        return load_finetuning_recipe(checkpoint, path, fields | {"images": images} | changes)

    stop_after(FineTuningTask(recipe(64)), 1)
    folder = RunFolder(tmp_path / "tuned")
    folder.check_recipe(recipe(6400))
    folder.check_recipe(recipe(6400, checkpoint=os.path.relpath(run)))
    folder.check_recipe(recipe(6400, layer_decay=0.85))  # the default, given
    from_file = recipe(6400, folder.recipe)
    assert from_file.training.warmup_images == 320
    folder.check_recipe(from_file)
    for changes in ({"warmup_images": 100}, {"layer_decay": 0.5}):
        with pytest.raises(RunError, match=next(iter(changes))):
            folder.check_recipe(recipe(6400, **changes))


HOLD = """
import pathlib, sys, time
from ldae.files import FolderClaim
claim = FolderClaim(pathlib.Path(sys.argv[1]))
assert claim.acquire()
print("held", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("train", [pretrain, pytest.param(train_tokenizer, marks=pytest.mark.slow)])
def test_a_folder_in_use_is_refused_and_taken_over_from_a_killed_run(make_recipe, tmp_path, train):
    def start():
        train(make_recipe(images=32))

    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    try:
        with pytest.raises(RunError) as error:
            start()
        place = f"process {holder.pid} on {socket.gethostname()}"
        assert f"is in use by {place}, which trains there" in str(error.value)
        assert [path.name for path in (tmp_path / "run").iterdir()] == [CLAIM_FILE]
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    start()
    assert not (tmp_path / "run" / CLAIM_FILE).exists()


def test_a_run_that_lost_its_folder_writes_no_checkpoint(make_recipe):
    def lose(run):
        (run.folder.path / CLAIM_FILE).write_text("filelock/2\npid=1\nhost=elsewhere\nmode=lease\ntoken=" + "0" * 32)

    with pytest.raises(RunError, match="was taken over by"):
        train_task(DenoisingTask(make_recipe()), After(2, lose))


def test_a_run_inside_a_claim_of_its_own_process_goes_on(make_recipe, tmp_path):
    claim = FolderClaim(tmp_path / "run")
    assert claim.acquire()
    pretrain(make_recipe(images=32))
    claim.check()
    claim.release()


def damage(file: Path, how: str) -> None:
    if how == "missing":
        file.unlink()
    else:
        os.truncate(file, 0 if how == "empty" else file.stat().st_size - 7)


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("model.safetensors", "truncated"),
        ("optimizer.safetensors", "empty"),
        ("optimizer.safetensors", "missing"),
        ("ema.safetensors", "missing"),
        ("state.json", "truncated"),
        ("state.json", "missing"),
    ],
)
def test_a_damaged_checkpoint_falls_back_to_the_one_before(make_recipe, whole_run, tmp_path, capsys, name, how):
    fields = {"ema_decay": 0.5, "checkpoint_every_images": 32}
    folder = RunFolder(shutil.copytree(whole_run, tmp_path / "run"))
    (folder.path / "metrics.jsonl").write_text("")
    damage(folder.checkpoints / "images-000000000128" / name, how)
    pretrain(make_recipe(images=128, **fields))
    said = [line for line in capsys.readouterr().out.splitlines() if "is damaged" in line or "Resuming" in line]
    assert len(said) == 2 and "images-000000000128 is damaged (" in said[0] and said[1] == "Resuming from 96 images."
    model = "model.safetensors"
    assert (folder.path / model).read_bytes() == (whole_run / model).read_bytes()
    names = sorted(path.name for path in folder.checkpoints.iterdir())
    assert names == ["damaged-images-000000000128", "images-000000000096", "images-000000000128"]


def test_a_run_without_a_sound_checkpoint_is_one_clear_error(make_recipe, whole_run, tmp_path):
    folder = RunFolder(shutil.copytree(whole_run, tmp_path / "run"))
    (folder.path / "metrics.jsonl").write_text("")
    for path in folder.checkpoints.iterdir():
        damage(path / "model.safetensors", "truncated")
    with pytest.raises(
        RunError, match=r"images-000000000128 is damaged .*, and no other checkpoint in .* can be read"
    ):
        pretrain(make_recipe(images=128, ema_decay=0.5, checkpoint_every_images=32))
    assert len(list(folder.checkpoints.glob("images-*"))) == 2
