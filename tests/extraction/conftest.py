from pathlib import Path

import pytest
import torch
from transformers import ViTConfig, ViTImageProcessor, ViTModel

from ldae import LDAEForPreTraining, LDAEModel
from ldae.data.image_processor import save_image_processor
from tests.models.small_models import open_gates, small_config
from tests.processes import forget_processes


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    forget_processes()


@pytest.fixture
def encoder() -> LDAEModel:
    """2 + 1 blocks of width 32 at 16/4, of which an encoder has the first two."""
    torch.manual_seed(0)
    return open_gates(LDAEForPreTraining(small_config())).ldae


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = open_gates(LDAEForPreTraining(small_config()))
    model.save_pretrained(tmp_path / "run")
    save_image_processor(tmp_path / "run", model.config)
    return tmp_path / "run"


@pytest.fixture
def other_checkpoint(tmp_path: Path) -> Path:
    """A ViT of another library, with a class token, a pooler that was trained, and its own image processor."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    ViTModel(ViTConfig(image_size=12, patch_size=4, **sizes)).save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": 12, "width": 12}, image_mean=[0.4] * 3).save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"
