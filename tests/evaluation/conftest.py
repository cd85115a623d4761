import pytest
import torch

from ldae import LDAEConfig, LDAEForPreTraining
from ldae.data import DataConfig, open_images, open_probe_images
from ldae.data.image_processor import save_image_processor
from ldae.evaluation.untrained import untrained_like


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def config():
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64}
    return LDAEConfig.from_size("nano", image_size=16, patch_size=4, latent_dim=8, **sizes)


@pytest.fixture
def model(config):
    """A denoiser of 2 + 2 blocks with random gates: with zero ones all blocks would give the same."""
    return untrained_like(LDAEForPreTraining(config), seed=0)


@pytest.fixture
def checkpoint(model, tmp_path):
    model.save_pretrained(tmp_path / "run")
    save_image_processor(tmp_path / "run", model.config)
    return tmp_path / "run"


@pytest.fixture(scope="session")
def digits():
    return open_probe_images(DataConfig("digits"))


@pytest.fixture(scope="session")
def few_digits(tmp_path_factory):
    """A folder of 150 training and 60 test images, for verbs."""
    folder = tmp_path_factory.mktemp("few") / "data"
    folder.mkdir()
    for split, count in (("train", 150), ("test", 60)):
        rows = open_images(DataConfig("digits"), split).dataset.with_format(None).select(range(count))
        rows.to_parquet(folder / f"{split}.parquet")
    return folder
