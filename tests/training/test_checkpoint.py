import resource

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from ldae.errors import RunError
from ldae.training.checkpoint import (
    Checkpoint,
    collect_model,
    collect_optimizer,
    latest_checkpoint,
    load_checkpoint,
    restore,
    save_checkpoint,
)


def make_training() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    return model, torch.optim.AdamW(model.parameters(), lr=0.1)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(seed))
    model(x).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def make_checkpoint(images: int, ema: bool = False) -> Checkpoint:
    model, optimizer = make_training()
    step(model, optimizer, 0)
    average = {name: p.detach() for name, p in model.named_parameters()} if ema else {}
    state = {"images_seen": images, "data": [{"position": images}]}
    return Checkpoint(collect_model(model), collect_optimizer(model, optimizer), average, state)


def test_training_goes_on_bit_for_bit(tmp_path):
    model, optimizer = make_training()
    for seed in range(3):
        step(model, optimizer, seed)
    state = {"images_seen": 48}
    path = save_checkpoint(
        tmp_path, Checkpoint(collect_model(model), collect_optimizer(model, optimizer), {}, state), 2
    )
    for seed in range(3, 6):
        step(model, optimizer, seed)

    again, again_optimizer = make_training()
    restore(load_checkpoint(path), again, again_optimizer)
    for seed in range(3, 6):
        step(again, again_optimizer, seed)
    for (name, ours), (_, theirs) in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        assert torch.equal(ours, theirs), name


def test_everything_comes_back_and_nothing_is_a_pickle(tmp_path):
    saved = make_checkpoint(64, ema=True)
    path = save_checkpoint(tmp_path, saved, keep=1)
    loaded = load_checkpoint(path)
    assert loaded.state == saved.state and loaded.images_seen == 64
    for part in ("model", "optimizer", "ema"):
        ours, theirs = getattr(saved, part), getattr(loaded, part)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert {file.suffix for file in path.iterdir()} == {".safetensors", ".json"}


def test_rotation_keeps_the_newest_and_ignores_unfinished_ones(tmp_path):
    (tmp_path / ".incomplete-images-000000000999").mkdir()
    for images in (8, 128, 64, 256):
        save_checkpoint(tmp_path, make_checkpoint(images), keep=2)
    assert [path.name for path in sorted(tmp_path.glob("images-*"))] == ["images-000000000128", "images-000000000256"]
    assert latest_checkpoint(tmp_path).name == "images-000000000256"
    assert latest_checkpoint(tmp_path / "nowhere") is None


def test_a_full_disk_is_said_and_leaves_the_last_checkpoint_intact(tmp_path):
    kept = save_checkpoint(tmp_path / "checkpoints", make_checkpoint(64), keep=1)
    before = load_checkpoint(kept)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # no file may grow beyond 100 bytes
    try:
        with pytest.raises(RunError) as error:
            save_checkpoint(tmp_path / "checkpoints", make_checkpoint(128), keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "at 128 images could not be written" in str(error.value) and "images-000000000064, is intact" in str(
        error.value
    )
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [kept.name]
    after = load_checkpoint(kept)
    assert all(torch.equal(before.model[key], after.model[key]) for key in before.model)


def test_sharded_training_is_saved_whole_and_goes_on(tmp_path):
    """FSDP2's sharded weights and optimizer state, on a mesh of one process: whole tensors out, the same shards in."""

    def sharded() -> tuple[nn.Module, torch.optim.Optimizer]:
        model, _ = make_training()
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        return model, torch.optim.AdamW(model.parameters(), lr=0.1)

    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        model, optimizer = sharded()
        for seed in range(3):
            step(model, optimizer, seed)
        saved = Checkpoint(collect_model(model), collect_optimizer(model, optimizer), {}, {"images_seen": 48})
        assert not any(
            isinstance(value, DTensor) for part in (saved.model, saved.optimizer) for value in part.values()
        )
        path = save_checkpoint(tmp_path, saved, keep=1)
        step(model, optimizer, 3)

        again, again_optimizer = sharded()
        restore(load_checkpoint(path), again, again_optimizer)
        step(again, again_optimizer, 3)
        ours, theirs = collect_model(model), collect_model(again)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    finally:
        torch.distributed.destroy_process_group()
