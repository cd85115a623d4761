"""The loop with a task of its own: what a new task has to say, and when callbacks are called."""

import torch
from safetensors.torch import load_file
from torch import nn

from ldae.training.loop import Callback
from ldae.training.task import Task
from tests.training.conftest import stop_after, train_task


class Brightness(Task):
    """Predicts the mean of an image's pixels by a linear layer behind dropout."""

    def build(self, checkpoint):
        return nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3 * 16 * 16, 1))

    def loss(self, batch, positions):
        pixels = self.pixels(batch, positions)  # (b, C, H, W)
        return (self.network(pixels)[:, 0] - pixels.mean(dim=(1, 2, 3))).square().mean()

    def finish(self, folder, weights):
        torch.save(weights, folder.path / "weights.pt")


class Recorder(Callback):
    def __init__(self):
        self.calls = []

    def start(self, run):
        self.calls.append(("start", run.images_seen))

    def after_step(self, run):
        self.calls.append(("step", run.images_seen))

    def log(self, run, record):
        self.calls.append((record["event"], run.images_seen))

    def saved(self, run):
        self.calls.append(("saved", run.images_seen))

    def finish(self, run):
        self.calls.append(("finish", (run.folder.path / "weights.pt").is_file()))


def test_callbacks_are_called_in_order(make_recipe):
    recorder = Recorder()
    train_task(Brightness(make_recipe(images=128, checkpoint_every_images=64)), recorder)
    steps = [("step", 32), ("train", 64), ("step", 64), ("saved", 64)]
    steps += [("step", 96), ("train", 128), ("step", 128), ("saved", 128)]
    assert recorder.calls == [("start", 0), *steps, ("trained", 128), ("finish", True)]


def test_the_step_seeds_dropout_so_that_a_resumed_run_ends_with_the_same_weights(make_recipe):
    whole = train_task(Brightness(make_recipe("whole")))
    torch.rand(5)  # whatever was drawn before
    stop_after(Brightness(make_recipe("parts")), 3)
    parts = train_task(Brightness(make_recipe("parts")))
    newest = [sorted(run.checkpoints.iterdir())[-1] / "model.safetensors" for run in (whole, parts)]
    ours, theirs = map(load_file, newest)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert whole.records()[-1] == parts.records()[-1] == {"images": 256, "event": "finished"}
