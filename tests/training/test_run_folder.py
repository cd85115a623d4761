"""A run's folder: when its recipe counts, which recipes are the same, who holds it, and what it resumes from."""

import pytest

from ldae.errors import RunError
from ldae.training.pretraining import DenoisingTask, pretrain
from tests.training.conftest import stop_after


@pytest.mark.parametrize(
    "mistake",
    [
        {"dataset": "no/such/folder"},
        {"image_column": "picture"},
        {"tokenizer": "no/such/tokenizer"},
        {"micro_batch_size": 5},
        {"report_to": ["nowhere"]},
    ],
    ids=str,
)
def test_a_start_that_fails_does_not_refuse_the_corrected_command(make_recipe, mistake):
    with pytest.raises(ValueError, match=r"no/such|picture|does not divide|nowhere"):
        pretrain(make_recipe(images=32, latent_dim=5, seed=3, **mistake))
    assert pretrain(make_recipe(images=32)).records()[-1]["event"] == "finished"


def test_a_recipe_counts_from_the_first_checkpoint(make_recipe):
    stop_after(DenoisingTask(make_recipe()), 1)
    with pytest.raises(RunError, match=r"another recipe \(training.seed: 0 -> 1\)"):
        pretrain(make_recipe(seed=1))


def test_a_model_without_its_checkpoints_keeps_its_recipe(make_recipe):
    folder = pretrain(make_recipe(images=32))
    for path in folder.checkpoints.rglob("*"):
        path.unlink() if path.is_file() else None
    for path in folder.checkpoints.iterdir():
        path.rmdir()
    with pytest.raises(RunError, match="another recipe"):
        pretrain(make_recipe(images=32, seed=1))
