"""The loop with a task of its own: what a new task has to say, and when callbacks are called."""

import os
import signal

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from ldae import stopping
from ldae.training.loop import Callback
from ldae.training.run_folder import RunFolder
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


class StoppedInside(Brightness):
    """Receives a SIGTERM in the loss of the micro-batch that begins with an example."""

    example = None

    def build(self, checkpoint):
        return nn.Sequential(nn.Flatten(), nn.BatchNorm1d(3 * 16 * 16), nn.Linear(3 * 16 * 16, 1))

    def loss(self, batch, positions):
        if int(positions[0]) == self.example:
            os.kill(os.getpid(), signal.SIGTERM)
        assert self.example is None or int(positions[0]) <= self.example
        return super().loss(batch, positions)


@pytest.mark.parametrize("changes", [{}, {"streaming": True, "shuffle_window": 64}], ids=["map", "stream"])
def test_a_stop_between_micro_batches_goes_back_to_the_last_step(make_recipe, changes, capfd):
    fields = {"micro_batch_size": 8, "images": 160, **changes}
    whole = train_task(StoppedInside(make_recipe("whole", **fields)))
    for example, saved in ((8, 0), (72, 64)):
        task = StoppedInside(make_recipe("parts", **fields))
        task.example = example
        with pytest.raises(SystemExit) as stop:
            train_task(task)
        assert stop.value.code == 143
        shown = capfd.readouterr()
        assert f"saved at {saved:,} images" in shown.out and "received SIGTERM, stopping after this batch" in shown.err
        names = [path.name for path in RunFolder.from_recipe(task.recipe).checkpoints.iterdir()]
        assert names == ([f"images-{saved:012d}"] if saved else [])
    parts = train_task(StoppedInside(make_recipe("parts", **fields)))
    newest = [sorted(run.checkpoints.iterdir())[-1] / "model.safetensors" for run in (whole, parts)]
    assert newest[0].read_bytes() == newest[1].read_bytes()


class SlowProbe(Callback):
    """Measures at every step, over batches; it is stopped in the second step's."""

    def __init__(self, signals):
        self.signals = signals

    def after_step(self, run):
        if self.signals and run.images_seen == 64:
            os.kill(os.getpid(), signal.SIGTERM)
        stopping.check()
        run.log({"event": "probe"})


def test_a_stop_in_a_probe_saves_and_the_resumed_run_probes_again(make_recipe):
    with pytest.raises(SystemExit):
        train_task(Brightness(make_recipe()), SlowProbe(signals=True))
    folder = train_task(Brightness(make_recipe()), SlowProbe(signals=False))
    probed = [record["images"] for record in folder.records() if record["event"] == "probe"]
    assert probed == list(range(32, 257, 32))
