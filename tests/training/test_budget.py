"""Warnings before the first step of a run that would train little or nothing."""

import pytest

from ldae.training.pretraining import pretrain


FINE = {"images": 320, "warmup_images": 64}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, []),
        (
            {"images": 32},
            ["the budget of 32 images is 1 step of 32", "the warm-up of 64 images is not shorter"],
        ),
        ({"images": 288}, ["the budget of 288 images is 9 steps of 32 images"]),
        ({"warmup_images": 320}, ["the warm-up of 320 images is not shorter than the budget of 320"]),
        (
            {"total_batch_size": 1500, "micro_batch_size": 100, "images": 1500},
            ["is 1 step of 1,500", "the batch of 1,500 images is larger than the data set of 1,437"],
        ),
    ],
    ids=str,
)
def test_a_budget_that_trains_little_is_told_in_one_line_each(make_recipe, capsys, changes, said):
    pretrain(make_recipe(**FINE | changes))
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("Warning: pre-training: ")]
    assert len(warnings) == len(said), warnings
    assert all(text in line for text, line in zip(said, warnings, strict=True))
