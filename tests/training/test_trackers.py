"""Trackers: what they receive, and that a resumed run is one run to them."""

import json

import pytest
from accelerate.tracking import GeneralTracker
from PIL import Image

from ldae.training.callbacks import Trackers
from ldae.training.pretraining import DenoisingTask, pretrain
from tests.training.conftest import stop_after, train_task


class Recorder(GeneralTracker):
    """Keeps what it receives."""

    name = "recorder"
    requires_logging_directory = False

    def __init__(self):
        super().__init__()
        self.config, self.numbers, self.images, self.finished = {}, [], {}, False

    @property
    def tracker(self):
        return self

    def store_init_configuration(self, values):
        self.config = values

    def log(self, values, step=None, **kwargs):
        self.numbers.append((step, values))

    def log_images(self, values, step=None, **kwargs):
        self.images |= values

    def finish(self):
        self.finished = True


def test_a_tracker_receives_the_recipe_every_number_and_the_pictures(make_recipe, tmp_path):
    recipe, recorder = make_recipe(), Recorder()
    (tmp_path / "run" / "pictures").mkdir(parents=True)
    Image.new("RGB", (6, 4), "red").save(tmp_path / "run" / "pictures" / "denoising.png")
    folder = train_task(DenoisingTask(recipe), Trackers([recorder]))
    config = recorder.config
    assert config["training.base_learning_rate"] == 1e-2 and config["training.adam_betas"] == "[0.9, 0.95]"
    assert config["model.latent_dim"] == 4 and "training.ema_decay" not in config  # not set
    logged = [(r["images"], r["loss"]) for r in folder.records() if r["event"] == "train"]
    received = [(step, values["train/loss"]) for step, values in recorder.numbers if "train/loss" in values]
    assert received == logged and len(logged) == 4
    picture = recorder.images["denoising"]
    assert picture.shape == (1, 4, 6, 3) and picture[0, 0, 0].tolist() == [255, 0, 0] and recorder.finished


def test_tensorboard_shows_the_numbers_the_recipe_and_the_pictures(make_recipe):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = pretrain(make_recipe(report_to=["tensorboard"])).path
    files = sorted((folder / "logs").rglob("events.out.*"), key=lambda path: len(path.parts))
    events = EventAccumulator(str(files[0]))
    events.Reload()
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = {record["images"]: record["loss"] for record in records if record["event"] == "train"}
    assert {event.step: event.value for event in events.Scalars("train/loss")} == pytest.approx(losses, abs=1e-6)
    assert {"denoising", "training"} <= {tag.split("/")[0] for tag in events.Tags()["images"]}
    assert "model.hidden_size: 32" in next((folder / "logs").rglob("hparams.yml")).read_text()


def test_a_resumed_run_keeps_its_id(make_recipe, monkeypatch):
    """wandb and trackio are not installed here: what their trackers are started with is looked at."""
    started = []

    def init_trackers(self, project, config=None, init_kwargs=None):
        started.append(init_kwargs)

    monkeypatch.setattr("accelerate.Accelerator.init_trackers", init_trackers)
    stop_after(DenoisingTask(make_recipe()), 2, Trackers([Recorder()]))
    folder = train_task(DenoisingTask(make_recipe()), Trackers([Recorder()]))
    assert started[0] == started[1]
    wandb = started[0]["wandb"]
    assert wandb["resume"] == "allow" and wandb["id"] == (folder.path / "logs" / "run_id").read_text()
    train_task(DenoisingTask(make_recipe("other")), Trackers([Recorder()]))
    assert started[2]["wandb"]["id"] != wandb["id"]


def test_a_tracker_that_is_not_installed_is_refused(make_recipe):
    with pytest.raises(ValueError, match=r"report_to='wandbb' is not available; pip install 'ldae\[tracking\]'"):
        pretrain(make_recipe(report_to=["wandbb"]))
