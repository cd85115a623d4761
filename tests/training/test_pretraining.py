"""Runs of a tiny recipe, whole: what a run's folder holds, resuming, splitting the batch, stopping, failing."""

import json
import time
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import Accelerator
from safetensors.torch import load_file

from ldae import LDAEForPreTraining
from ldae.errors import RunError
from ldae.training.loop import Run
from ldae.training.pretraining import DenoisingTask, pretrain
from ldae.training.recipe import load_recipe
from ldae.training.run_folder import RunFolder
from tests.processes import ForkedProcess, run_on_two
from tests.training.conftest import TINY, After, stop_after, train_task


LAUNCHER = Path(__file__).parents[2] / "training" / "pretrain.py"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def losses(folder: Path) -> list[float]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record["loss"] for record in records if record["event"] == "train"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a finished run of the tiny recipe."""
    place = tmp_path_factory.mktemp("whole")
    (place / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    return pretrain(load_recipe(place / "tiny.yaml", {"output_dir": str(place / "run")})).path


def test_a_run_leaves_a_folder_that_says_and_holds_everything(make_recipe):
    folder = pretrain(make_recipe(probe_every_images=128)).path
    for name in (
        "config.json model.safetensors preprocessor_config.json scheduler/scheduler_config.json README.md recipe.yaml "
        "metrics.jsonl pictures/denoising.png pictures/training.png modeling_ldae.py"
    ).split():
        assert (folder / name).is_file(), name
    assert not list(folder.rglob("*.pkl")) and not list(folder.rglob("*.bin")) and not list(folder.glob(".*"))
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [r["images"] for r in records if r["event"] == "train"] == [64, 128, 192, 256]
    assert [r["images"] for r in records if r["event"] == "probe"] == [128, 256]
    assert records[-1] == {"images": 256, "event": "finished"}
    model = LDAEForPreTraining.from_pretrained(folder)
    assert bool(model.ldae.tokenizer.fitted)
    assert losses(folder)[-1] < losses(folder)[0]


def test_options_that_do_not_fit_the_images_are_refused(make_recipe):
    with pytest.raises(ValueError, match=r"data.decode_size=8 is smaller than image_size=16"):
        DenoisingTask(make_recipe(decode_size=8, random_resized_crop=False))


def test_a_second_start_of_a_finished_run_changes_nothing(whole, make_recipe, capsys):
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in whole.rglob("*") if path.is_file()}
    pretrain(make_recipe(output_dir=str(whole)))
    assert "is finished (256 images); nothing to do" in capsys.readouterr().out
    assert before == {
        path: (path.stat().st_mtime_ns, path.read_bytes()) for path in whole.rglob("*") if path.is_file()
    }


@pytest.mark.parametrize(
    "changes", [{}, {"streaming": True, "num_workers": 2, "ema_decay": 0.9}], ids=["map", "stream"]
)
def test_stopping_and_resuming_changes_no_bit(make_recipe, changes, whole):
    whole = pretrain(make_recipe("whole", **changes)).path if changes else whole
    stop_after(DenoisingTask(make_recipe("parts", **changes)), 3)
    parts = pretrain(make_recipe("parts", **changes)).path
    assert (whole / "model.safetensors").read_bytes() == (parts / "model.safetensors").read_bytes()
    assert losses(whole) == losses(parts)


def test_images_are_cropped_once_while_decoding_or_afterwards(make_recipe):
    """Of square images both are the same boxes, but for the rounding of the first to 8 bits."""

    def first_pixels(name, **fields):
        recipe = make_recipe(name, horizontal_flip=False, **fields)
        run = Run(DenoisingTask(recipe), recipe.training, RunFolder.from_recipe(recipe), (), Accelerator())
        batch = next(run.loader)
        return batch, run.task.pixels(batch, batch.positions)

    batch, pixels = first_pixels("during")
    assert torch.equal(pixels, batch.images.float() / 127.5 - 1)
    whole, cropped = first_pixels("after", decode_size=16)
    assert torch.equal(whole.positions, batch.positions) and not torch.equal(whole.images, batch.images)
    torch.testing.assert_close(cropped, pixels, atol=1.1 / 127.5, rtol=0)


def test_more_budget_extends_a_finished_run(make_recipe):
    pretrain(make_recipe(images=128))
    folder = pretrain(make_recipe(images=256)).path
    assert len(losses(folder)) == 4


def test_another_recipe_in_the_same_folder_is_refused(make_recipe):
    pretrain(make_recipe(images=64))
    with pytest.raises(RunError, match=r"another recipe \(model.latent_dim: 4 -> 3; training.seed: 0 -> 1\)"):
        pretrain(make_recipe(images=64, latent_dim=3, seed=1))


def test_micro_batches_do_not_change_the_run(make_recipe, whole):
    split = pretrain(make_recipe("split", micro_batch_size=4)).path
    assert losses(whole) == pytest.approx(losses(split), abs=1e-5)
    ours, theirs = weights(whole), weights(split)
    assert max((ours[name].float() - theirs[name].float()).abs().max().item() for name in ours) < 1e-4


def test_two_processes_follow_the_curve_of_one(whole, recipe_file, tmp_path):
    two = tmp_path / "two"
    process = run_on_two(LAUNCHER, "--config", recipe_file, "--output_dir", two, folder=tmp_path)
    assert "2 processes x 1 accumulated x 16" in process.stdout
    assert losses(whole) == pytest.approx(losses(two), abs=1e-5)


def test_a_killed_run_goes_on_to_the_same_bytes(whole, make_recipe, recipe_file, tmp_path, capsys):
    killed = tmp_path / "killed"
    options = ("--config", recipe_file, "--output_dir", killed, "--checkpoint_every_images", 32)
    process = ForkedProcess(LAUNCHER, *options, folder=tmp_path)
    while not list((killed / "checkpoints").glob("images-*")) and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    assert not (killed / "checkpoints" / "images-000000000256").exists()
    pretrain(make_recipe("killed", checkpoint_every_images=32))
    assert "Resuming from" in capsys.readouterr().out
    assert (whole / "model.safetensors").read_bytes() == (killed / "model.safetensors").read_bytes()


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_batch(make_recipe):
    recipe = make_recipe(images=512, checkpoint_every_images=64)
    spoil = After(5, lambda run: run.task.module.head.projection.bias.data.fill_(float("nan")))
    with pytest.raises(RunError) as error:
        train_task(DenoisingTask(recipe), spoil)
    assert "in the batch of examples 160 to 191" in str(error.value)
    assert "images-000000000128, is kept" in str(error.value)
    newest = RunFolder.from_recipe(recipe).checkpoints / "images-000000000128" / "model.safetensors"
    assert all(value.isfinite().all() for value in load_file(newest).values())


def test_a_folder_that_cannot_be_written_is_said(make_recipe, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="is a file or lies in one"):
        pretrain(make_recipe("file/run"))
    with pytest.raises(ValueError, match="output_dir is missing"):
        pretrain(make_recipe(output_dir=None))


def test_an_average_is_exported_and_the_raw_weights_go_on(make_recipe, whole):
    averaged = pretrain(make_recipe("averaged", ema_decay=0.5)).path
    newest = sorted((averaged / "checkpoints").iterdir())[-1]
    checkpoint, ema = load_file(newest / "model.safetensors"), load_file(newest / "ema.safetensors")
    name = "head.projection.weight"
    assert torch.equal(checkpoint[name], weights(whole)[name])  # averaging does not change the training
    assert torch.equal(weights(averaged)[name], ema[name]) and not torch.equal(ema[name], checkpoint[name])


def test_activation_checkpointing_changes_nothing_but_memory(make_recipe):
    plain = pretrain(make_recipe("plain", images=64)).path
    checkpointed = pretrain(make_recipe("checkpointed", images=64, activation_checkpointing=True)).path
    assert losses(plain) == pytest.approx(losses(checkpointed), abs=1e-6)


def test_bfloat16_autocast_trains(make_recipe):
    folder = pretrain(make_recipe(mixed_precision="bf16")).path
    assert losses(folder)[-1] < losses(folder)[0]
    assert all(value.dtype in (torch.float32, torch.bool) for value in weights(folder).values())


def test_a_tokenizer_can_be_taken_from_another_run(make_recipe, tmp_path):
    first = pretrain(make_recipe("first", images=32)).path
    second = pretrain(make_recipe("second", images=32, tokenizer=str(first), seed=3)).path
    name = "ldae.tokenizer.components"
    assert torch.equal(weights(first)[name], weights(second)[name])
    with pytest.raises(ValueError, match="has 4 components, fewer than latent_dim=5"):
        pretrain(make_recipe("third", tokenizer=str(first), latent_dim=5))


@pytest.mark.parametrize("streaming", [False, True])
def test_labels_beyond_the_classes_are_refused_before_they_train(make_recipe, streaming):
    recipe = make_recipe(num_class_embeds=9, streaming=streaming)  # 9 would be the null class
    with pytest.raises(ValueError, match=r"digits \(train\) has the label 9, and the model has classes 0 to 8 only"):
        pretrain(recipe)


def test_labels_that_are_not_streamed_are_checked_once(make_recipe, monkeypatch):
    checked = []
    monkeypatch.setattr("ldae.training.task.check_labels", lambda labels, *_: checked.append(len(labels)))
    pretrain(make_recipe(num_class_embeds=10, images=64))
    assert checked == [1437]  # all of them, before the first batch
