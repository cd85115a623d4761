"""The encoders that the repository ships load from a clone, by AutoModel, and are what their results say."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoImageProcessor, AutoModel, AutoModelForPreTraining, pipeline

from ldae.data.digits import load_digits


CARDS = Path(__file__).parents[2] / "model_cards"
ENCODERS = sorted(path.parent for path in CARDS.glob("*/config.json"))
MOST_BYTES = 12 * 2**20


def test_there_are_encoders_of_both_kinds():
    assert {folder.name for folder in ENCODERS} == {"ddae-mini-cifar10", "ldae-mini-cifar10"}


@pytest.mark.parametrize("folder", ENCODERS, ids=lambda folder: folder.name)
def test_an_encoder_loads_and_pools(folder):
    encoder = AutoModel.from_pretrained(folder)
    processor = AutoImageProcessor.from_pretrained(folder)
    images = [example["image"].resize((32, 32)) for example in load_digits("test").select(range(4))]
    pixels = processor(images, return_tensors="pt").pixel_values
    with torch.no_grad():
        features = encoder(pixels).pooler_output  # (4, C)
        assert torch.equal(features, encoder(pixels).pooler_output)
    assert features.isfinite().all() and features.std(dim=0).mean() > 0
    pooled = pipeline("image-feature-extraction", model=str(folder))(images[0], pool=True)
    assert torch.tensor(pooled).flatten().sub(features[0]).abs().max() < 1e-4


@pytest.mark.parametrize("folder", ENCODERS, ids=lambda folder: folder.name)
def test_an_encoder_denoises(folder):
    denoiser = AutoModelForPreTraining.from_pretrained(folder).eval()
    images = [example["image"].resize((32, 32)) for example in load_digits("test").select(range(8))]
    pixels = AutoImageProcessor.from_pretrained(folder)(images, return_tensors="pt").pixel_values
    timesteps, noise = denoiser.draw_corruption(torch.arange(8), seed=0)
    with torch.no_grad():
        trained = denoiser(pixels, timesteps, noise).loss
        fresh = AutoModelForPreTraining.from_config(denoiser.config)
        if hasattr(fresh, "ldae"):
            fresh.ldae.tokenizer.load_state_dict(denoiser.ldae.tokenizer.state_dict())
        assert trained < 0.7 * fresh.eval()(pixels, timesteps, noise).loss


@pytest.mark.parametrize("folder", ENCODERS, ids=lambda folder: folder.name)
def test_an_encoder_is_small_and_says_what_it_is_worth(folder):
    assert (folder / "model.safetensors").stat().st_size <= MOST_BYTES
    assert not list(folder.rglob("*.bin")) and not list(folder.rglob("*.pkl"))
    results = json.loads((folder / "results.json").read_text())
    linear = {  # of all labels; of raw pixels a ridge probe
        entry["checkpoint"]: entry["value"]
        for entry in results
        if "holdout" in entry["protocol"] and entry.get("chosen", True)
    }
    assert linear["."] > linear["untrained"] and linear["."] > linear["raw pixels"]
    assert "model-index" in (folder / "README.md").read_text()
