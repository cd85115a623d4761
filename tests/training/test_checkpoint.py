import resource

import pytest
import torch
from torch import nn

from ldae.errors import RunError
from ldae.processes import make_accelerator
from ldae.sections import TrainingConfig
from ldae.training.checkpoint import PARTS, latest_checkpoint, load_checkpoint, save_checkpoint
from ldae.training.state import TrainingState
from ldae.training.task import Task


class Toy(Task):
    """Three layers, one of them with running statistics."""

    def __init__(self):
        torch.manual_seed(0)
        self.module = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))


def make_training(ema_decay: float | None = None) -> TrainingState:
    state = TrainingState(Toy(), TrainingConfig(ema_decay=ema_decay), make_accelerator(cpu=True))
    for group in state.optimizer.param_groups:
        group["lr"] = 0.1
    return state


def step(state: TrainingState, seed: int) -> None:
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(seed))
    state.network(x).square().mean().backward()
    state.optimizer.step()
    state.optimizer.zero_grad()
    if state.ema is not None:
        state.ema.step(state.trained.values())


def save(folder, images: int, state: TrainingState | None = None, keep: int = 1):
    if state is None:
        state = make_training()
        step(state, 0)
    steps = state.ema.optimization_step if state.ema else 0
    record = {"images_seen": images, "data": [{"position": images}], "ema_steps": steps}
    return save_checkpoint(folder, state.parts(), record, keep)


def test_training_goes_on_bit_for_bit(tmp_path):
    state = make_training(ema_decay=0.9)
    for seed in range(3):
        step(state, seed)
    path = save(tmp_path, 48, state)
    for seed in range(3, 6):
        step(state, seed)

    again = make_training(ema_decay=0.9)
    again.restore(load_checkpoint(path))
    for seed in range(3, 6):
        step(again, seed)
    for part, tensors in state.parts().items():
        theirs = again.parts()[part]
        assert tensors and all(torch.equal(value, theirs[name]) for name, value in tensors.items()), part


def test_everything_comes_back_and_nothing_is_a_pickle(tmp_path):
    state = make_training(ema_decay=0.9)
    step(state, 0)
    path = save(tmp_path, 64, state)
    loaded = load_checkpoint(path)
    assert loaded.state == {"images_seen": 64, "data": [{"position": 64}], "ema_steps": 1}
    for part in PARTS:
        ours, theirs = state.parts()[part], loaded.read(part)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert loaded.read("model", "0.").keys() == {"0.weight", "0.bias"}
    assert {file.suffix for file in path.iterdir()} == {".safetensors", ".json"}


def test_the_average_is_swapped_in_and_out():
    state = make_training(ema_decay=0.9)
    for seed in range(3):
        step(state, seed)
    parts = {part: {name: value.clone() for name, value in tensors.items()} for part, tensors in state.parts().items()}
    with pytest.raises(KeyError), state.averaged():
        assert all(torch.equal(state.trained[name], value) for name, value in parts["ema"].items())
        raise KeyError
    for part, tensors in parts.items():
        assert all(torch.equal(state.parts()[part][name], value) for name, value in tensors.items())
    assert not torch.equal(parts["ema"]["0.weight"], parts["model"]["0.weight"])
    assert torch.equal(state.weights()["0.weight"], parts["ema"]["0.weight"])
    assert torch.equal(state.weights()["1.running_mean"], parts["model"]["1.running_mean"])


def test_rotation_keeps_the_newest_and_ignores_unfinished_ones(tmp_path):
    (tmp_path / ".incomplete-images-000000000999").mkdir()
    for images in (8, 128, 64, 256):
        save(tmp_path, images, keep=2)
    assert [path.name for path in sorted(tmp_path.glob("images-*"))] == ["images-000000000128", "images-000000000256"]
    assert latest_checkpoint(tmp_path).name == "images-000000000256"
    assert latest_checkpoint(tmp_path / "nowhere") is None


def test_a_full_disk_is_said_and_leaves_the_last_checkpoint_intact(tmp_path):
    kept = save(tmp_path / "checkpoints", 64)
    before = load_checkpoint(kept).read("model")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # no file may grow beyond 100 bytes
    try:
        with pytest.raises(RunError) as error:
            save(tmp_path / "checkpoints", 128)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "at 128 images could not be written" in str(error.value) and "images-000000000064, is intact" in str(
        error.value
    )
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [kept.name]
    after = load_checkpoint(kept).read("model")
    assert all(torch.equal(before[key], after[key]) for key in before)
