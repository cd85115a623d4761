"""Features in bounded memory: the same rows from memory and from the file, and a peak that data does not raise."""

import ctypes
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from ldae.evaluation.feature_store import FeatureStore, Rows, pieces_of
from ldae.evaluation.linear_probe import ProbeSettings, train_adam_probes
from ldae.evaluation.ridge import fit_ridge_grid


def filled(memory, features, piece=7):
    store = FeatureStore(memory)
    for rows in features.split(piece):
        store.append(rows)
    return store


@pytest.fixture
def features():
    return torch.randn(50, 3, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("memory, in_memory", [(10**6, True), (1000, False), (0, False)])
def test_rows_are_those_that_were_written(features, memory, in_memory):
    store = filled(memory, features)
    assert (store.shape, len(store), store.in_memory) == ((50, 3, 4), 50, in_memory)
    index = torch.tensor([[49, 0, 1], [2, 2, 30]])
    assert torch.equal(store[index], features[index])
    assert store[index[:0]].shape == (0, 3, 3, 4)
    store.append(features[:5])  # after reading, too
    assert torch.equal(store[torch.arange(48, 55)], torch.cat([features[48:], features[:5]]))
    with pytest.raises(ValueError, match=r"\(F, C\) = \(3, 4\)"):
        store.append(torch.zeros(2, 3, 5))


def test_no_file_is_left_behind(features, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    store = FeatureStore(0)
    store.append(features)
    assert not store.in_memory and list(tmp_path.iterdir()) == []


def test_chosen_rows_come_in_pieces_of_bounded_size(features):
    index = torch.randperm(50, generator=torch.Generator().manual_seed(1))[:30]
    rows = Rows(filled(0, features), index)
    assert rows.shape == (30, 3, 4)
    wide = features.repeat(1, 50, 200)  # 0.5 MB a row
    pieces = list(pieces_of(Rows(filled(0, wide), index)))
    assert len(pieces) > 1 and max(piece.nbytes for piece in pieces) <= 8 * 2**20
    assert torch.equal(torch.cat(pieces), wide[index])
    assert torch.equal(torch.cat(list(pieces_of(features))), features)


def test_probes_are_the_same_from_memory_and_from_the_file(features):
    labels = torch.arange(50) % 2
    settings = ProbeSettings(epochs=3, batch_size=16, seeds=(0, 1))
    found = []
    for memory in (10**6, 0):
        rows = Rows(filled(memory, features), torch.arange(50))
        data = (rows, labels)
        probes = train_adam_probes(lambda epoch, x=rows: x, labels, data, data, num_classes=2, settings=settings)
        found.append(probes)
    kept, written = found
    assert torch.equal(kept.probes.weight, written.probes.weight) and torch.equal(kept.probes.var, written.probes.var)
    assert torch.equal(kept.test, written.test)


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process can be set back on Linux alone")
def test_the_peak_does_not_grow_with_the_data():
    """32 MB of features, then 128 MB: the same 8 MB and a batch, or a piece, at a time."""
    peak_of_probes(250)  # what is loaded and allocated once
    small, large = peak_of_probes(1000), peak_of_probes(4000)
    assert large < small + 16 * 2**20, (small, large)
    assert peak_of_probes(4000, memory=2**40) > large + 60 * 2**20  # it would show: all of them in memory


def peak_of_probes(n: int, memory: int = 8 * 2**20) -> int:
    """How far a process grows, in bytes, while probes of n x 160 x 50 features are trained, fitted and scored."""
    generator = torch.Generator().manual_seed(0)
    ctypes.CDLL(None).malloc_trim(0)  # what earlier work has freed
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is resident
    except OSError as error:
        pytest.skip(f"the peak of the process cannot be set back here: {error}")
    before = resident()
    store, labels = FeatureStore(memory), torch.arange(n) % 4
    for begin in range(0, n, 250):
        features = torch.randn(250, 160, 50, generator=generator)
        features[..., :4] += 5 * torch.nn.functional.one_hot(labels[begin : begin + 250], 4)[:, None]
        store.append(features)
    rows = Rows(store, torch.arange(n))
    settings = ProbeSettings(1, 128, base_lr=0.1, lr_multipliers=(1.0,), seeds=(0,))
    data = (rows, labels)
    adam = train_adam_probes(lambda epoch: rows, labels, data, data, num_classes=4, settings=settings)
    ridge = fit_ridge_grid(data, data, data, num_classes=4, penalties=(1.0,))
    assert adam.test.min() > 0.5 and ridge.test.min() > 0.9
    return resident("VmHWM") - before


def resident(field: str = "VmRSS") -> int:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)]
    return 1024 * int(line.split()[1])
