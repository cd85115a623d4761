"""Checkpoints that an earlier version wrote are loaded by this one, and compute what they did (tests/fixtures)."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.fixtures.make_checkpoints import MAKERS, outputs_of


FIXTURES = Path(__file__).parents[1] / "fixtures"
# float32 on other processors and other numbers of threads; of outputs of order 1, and relative to larger ones
TOLERANCE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_a_stored_checkpoint_computes_what_it_did_when_it_was_made(name: str) -> None:
    folder = FIXTURES / name
    expected, found = (
        load_file(folder / "outputs.safetensors"),
        outputs_of(folder, load_file(folder / "inputs.safetensors")),
    )
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert value.std() > 0.05 if value.numel() > 1 else value > 0.05, f"{key} would not show a change"
        torch.testing.assert_close(found[key], value, **TOLERANCE, msg=lambda text, key=key: f"{name} {key}: {text}")


def test_every_stored_checkpoint_is_compared() -> None:
    assert {path.parent.name for path in FIXTURES.glob("*/config.json")} == set(MAKERS)
