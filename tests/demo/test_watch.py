"""A run that is watched while it trains: its log, its newest model, and the page's tab."""

import json
import os
import shutil
from pathlib import Path

import PIL.Image
import pytest
import torch
import yaml
from gradio_client import Client

from ldae.cli import run_verb
from ldae.data import DataConfig
from ldae.demo.model import DemoModel, open_demo_model
from ldae.demo.page import build_page, launch_page
from ldae.demo.watch import WatchedRun
from ldae.training.run_folder import RunFolder
from tests.demo.conftest import STORED


def step(images: int, loss: float, speed: float = 50.0) -> dict:
    return {"images": images, "event": "train", "loss": loss, "learning_rate": 1e-3, "images_per_second": speed}


PROBE = {"images": 2000, "event": "probe", "ridge_accuracy": 0.5, "knn_accuracy": 0.25, "best_ridge_accuracy": 0.75}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run that has begun: its claim and its recipe, of 5,000 images in whole batches of 64."""
    folder = RunFolder(tmp_path / "mine")
    folder.pictures.mkdir(parents=True)
    recipe = {"data": {"dataset": "digits"}, "training": {"images": 5000, "total_batch_size": 64}}
    folder.recipe.write_text(yaml.safe_dump(recipe))
    (folder.path / ".claim").touch()
    return folder


def export(folder: RunFolder, name: str = "ldae") -> None:
    shutil.copytree(STORED / name, folder.path, dirs_exist_ok=True)


def watch(folder: RunFolder) -> WatchedRun:
    def load() -> DemoModel:
        return open_demo_model(str(folder.path), DataConfig("digits", split="test"), device="cpu")

    run = WatchedRun.find(str(folder.path), load)
    assert run is not None
    return run


def stop(folder: RunFolder) -> None:
    os.utime(folder.path / ".claim", (0, 0))  # not renewed for long


def test_the_log_in_words_from_the_first_line_to_the_end(folder: RunFolder) -> None:
    run = watch(folder)
    assert run.read_log() == ("**Started:** the first numbers are still to come.", None, None)
    before = run.log_state()
    for images, loss, speed in ((1024, 0.5, 25.0), (2048, 0.25, 100.0)):
        folder.log(step(images, loss, speed))
    folder.log(PROBE)
    assert run.log_state() != before
    text, loss, accuracy = run.read_log()
    assert text == (  # 40 images per second over both lines, and 79 batches in all
        "**Training:** 2,000 of 5,056 images, 40.0 images per second, about 76 s left. Loss 0.25 at a learning rate "
        "of 0.001. "
        "Accuracies at 2,000 images: ridge probe 50.0%, kNN 25.0%, ridge probe of the best block and t 75.0%."
    )
    assert [axes.get_lines()[0].get_ydata().tolist() for axes in loss.axes] == [[0.5, 0.25], [1e-3, 1e-3]]
    assert [line.get_ydata().tolist() for line in accuracy.axes[0].get_lines()] == [[0.5], [0.25], [0.75]]

    before = run.log_state()
    stop(folder)
    assert run.log_state() != before  # a killed process writes no line
    assert run.read_log()[0].startswith("**Stopped** at 2,000 of 5,056 images.")
    folder.log(step(5056, 0.25))
    (folder.path / ".claim").touch()
    assert run.read_log()[0].startswith("**Ending:** all 5,056 images were seen; the last")
    folder.log({"images": 5056, "event": "trained", "seconds": 130.0, "hardware": "CPU, 2 threads"})
    folder.log({"images": 5056, "event": "finished"})
    assert run.read_log()[0].startswith("**Finished:** 5,056 images in 2 min on CPU, 2 threads. Loss 0.25")


@pytest.mark.parametrize(
    "end", ['{"images": 3000, "event": "tra', '{"images": 3000, "event": "train"}\n', "\0\0\n[1]\n"]
)
def test_a_line_that_is_being_written_or_damaged_is_left_out(folder: RunFolder, end: str) -> None:
    folder.log(step(1024, 0.5))
    with folder.metrics.open("a") as file:
        file.write(end)
    assert "Loss 0.5 at" in watch(folder).read_log()[0]


def test_a_newer_export_is_loaded_and_one_that_cannot_be_loaded_is_not(folder: RunFolder) -> None:
    run = watch(folder)
    assert not run.load_newest() and run.demo is None
    assert run.draw_denoised() == (None, "No model has been saved yet.")
    export(folder)
    assert run.load_newest() and not run.load_newest()
    demo, state = run.demo, run.picture_state()
    first, text = run.draw_denoised()
    assert first.size == (6 + 3 * 262, 23 + 2 * 285 + 6) and text.startswith("Two examples at t = 250, denoised by")
    demo.search()
    before = demo.model

    changed = open_demo_model(str(folder.path), device="cpu").model
    torch.nn.init.normal_(next(p for n, p in changed.named_parameters() if n.startswith("head") or "predict" in n))
    changed.save_pretrained(folder.path)
    weights = folder.path / "model.safetensors"
    whole, newer = weights.read_bytes(), weights.stat().st_mtime + 10
    weights.write_bytes(whole[:1000])
    os.utime(weights, (newer, newer))
    with pytest.raises(ValueError, match="cannot be loaded"):
        run.load_newest()
    assert run.demo is demo and demo.model is before
    weights.write_bytes(whole)
    os.utime(weights, (newer + 1, newer + 1))
    assert run.load_newest() and run.demo is demo and demo.model is not before
    assert demo.num_searched == 0, "features of the former model are forgotten"
    assert run.picture_state() != state and run.draw_denoised()[0].tobytes() != first.tobytes()


def test_the_picture_of_a_finished_run_is_shown_until_the_model_is_newer(folder: RunFolder) -> None:
    run = watch(folder)
    export(folder)
    run.load_newest()
    own = folder.pictures / "denoising.png"
    PIL.Image.new("RGB", (30, 20)).save(own)
    newest = max(path.stat().st_mtime for path in folder.path.iterdir()) + 10
    os.utime(own, (newest, newest))
    assert run.draw_denoised()[0].size == (30, 20)
    os.utime(folder.path / "model.safetensors", (newest + 1, newest + 1))
    assert run.draw_denoised()[0].size != (30, 20)


def tabs_of(page) -> list[str]:
    return [c["props"]["label"] for c in page.config["components"] if c["type"] == "tabitem"]


def test_which_checkpoints_have_a_training_tab(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pages = []
    monkeypatch.setattr("ldae.demo.page.launch_page", lambda page, host, port: pages.append(page))
    assert (
        WatchedRun.find(str(STORED / "ldae"), lambda: None) is None and WatchedRun.find("me/it", lambda: None) is None
    )
    for begin in (lambda: None, lambda: export(folder), lambda: folder.log(step(64, 1.0))):
        begin()
        assert run_verb("demo", [str(folder.path), "--device", "cpu"]) == 0
    alone, without_log, whole = map(tabs_of, pages)
    assert alone == ["Training"] and "holds no model yet; the page shows its training" in capsys.readouterr().out
    assert "Training" not in without_log and whole == [*without_log, "Training"]


def test_the_page_follows_the_log_and_the_model(folder: RunFolder) -> None:
    run = watch(folder)
    page = build_page(None, run)
    client = Client(launch_page(page, wait=False), verbose=False)
    text, loss, _ = client.predict(api_name="/training")
    assert text.startswith("**Started:**") and not loss["visible"]
    folder.log(step(1024, 0.5))
    text, loss, accuracy = client.predict(api_name="/training")
    assert text.startswith("**Training:** 1,024 of 5,056") and loss["visible"] and not accuracy["visible"]
    assert loss["value"]["plot"].startswith("data:image/png;base64,")
    assert json.dumps(client.predict(api_name="/training")).count("update") == 3, "nothing is sent again"
    assert client.predict(api_name="/newest")[0] == "No model has been saved yet."
    export(folder)
    text, picture = client.predict(api_name="/newest")
    assert text.startswith("Two examples") and PIL.Image.open(picture["value"]).width == 792
    page.close()
