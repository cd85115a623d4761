"""Probes that several processes fit together, each with some of the examples, are those of one process with all."""

import pytest
import torch

from ldae.evaluation.logistic import fit_logistic_grid
from ldae.evaluation.ridge import fit_ridge_grid
from tests.processes import run_on


SCRIPT = """
import sys
import torch
from ldae.evaluation.logistic import fit_logistic_grid
from ldae.evaluation.ridge import fit_ridge_grid
from ldae.shared_work import add_up, share, sharing_work

parts, memory = torch.load(sys.argv[1]), int(sys.argv[3])
with sharing_work():
    rank, world_size = share()
    mine = []
    for number, (features, labels) in enumerate(parts):
        # The second process has a third of the examples, and none that are held out.
        owners = (torch.arange(len(labels)) % 3 == 1).long() * (number != 1)
        mine.append((features[owners == rank], labels[owners == rank]))
    found = {
        "ridge": fit_ridge_grid(*mine, num_classes=5, reduce=add_up),
        "logistic": fit_logistic_grid(*mine, num_classes=5, memory=memory, reduce=add_up),
    }
    fields = {name: vars(probes) for name, probes in found.items()}
    torch.save(fields, f"{sys.argv[2]}-{rank}")
"""


@pytest.mark.parametrize("memory", [0, 2**29], ids=["read anew", "kept"])
def test_processes_fit_the_probes_of_one(tmp_path, memory):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2, 8, 5, generator=generator)
    parts = []
    for count in (240, 40, 60):
        x = torch.randn(count, 2, 8, generator=generator) + 100  # a large mean
        noise = torch.randn(count, 5, generator=generator)
        parts.append((x, (torch.einsum("nfc,fck->nk", x - 100, weight) + 3 * noise).argmax(dim=1)))
    torch.save(parts, tmp_path / "parts")
    (tmp_path / "script.py").write_text(SCRIPT)
    done = run_on(2, tmp_path / "script.py", tmp_path / "parts", tmp_path / "found", memory, folder=tmp_path)
    assert [process.returncode for process in done] == [0, 0], done[0].stderr + done[1].stderr
    first, second = (torch.load(tmp_path / f"found-{rank}") for rank in (0, 1))
    ridge = fit_ridge_grid(*parts, num_classes=5)
    logistic = fit_logistic_grid(*parts, num_classes=5, memory=memory)
    for name, probes, tolerance in (("ridge", ridge, 1e-9), ("logistic", logistic, 1e-6)):
        for field in ("penalty", "held_out", "test"):
            assert torch.equal(first[name][field], getattr(probes, field)), (name, field)
        torch.testing.assert_close(first[name]["held_out_loss"], probes.held_out_loss, rtol=tolerance, atol=tolerance)
        assert all(torch.equal(first[name][field], second[name][field]) for field in first[name]), name
    torch.testing.assert_close(first["ridge"]["weight"], ridge.weight, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(first["logistic"]["loss"], logistic.loss, rtol=1e-6, atol=1e-6)
    assert 0.3 < float(ridge.test.min()) < 1
