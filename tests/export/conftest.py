"""Small checkpoints that compute something, as a run and a probe leave them."""

from pathlib import Path

import pytest
import torch

from ldae import LDAEForImageClassification, LDAEForPreTraining, save_image_processor
from tests.models.small_models import open_gates, small_config


LABELS = {0: "zero", 1: "one", 2: "two"}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole denoiser of 2 + 1 blocks, as pre-training leaves it."""
    return save(LDAEForPreTraining(small_config()), tmp_path_factory.mktemp("runs") / "encoder")


@pytest.fixture(scope="session")
def classifier_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of three classes, as `linear_probe` leaves it."""
    config = small_config(id2label=LABELS, label2id={name: i for i, name in LABELS.items()}, feature_timestep=7)
    return save(LDAEForImageClassification(config), tmp_path_factory.mktemp("runs") / "classifier")


def save(model: LDAEForPreTraining | LDAEForImageClassification, folder: Path) -> Path:
    open_gates(model).save_pretrained(folder)
    save_image_processor(folder, model.config)
    return folder


@pytest.fixture(autouse=True)
def seeded():
    """The same small models whichever test ran before."""
    torch.manual_seed(0)
