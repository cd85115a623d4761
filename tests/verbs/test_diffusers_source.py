"""Verbs on a diffusion model published for diffusers: small images of another data set, a VAE in front."""

import json

import pytest
import torch
from diffusers import DDIMScheduler, DiTPipeline
from transformers import AutoConfig, AutoModel

from ldae.cli import main
from tests.models.small_diffusers import small_dit, small_vae


@pytest.fixture
def published(tmp_path):
    """A latent DiT for images of 32 x 32 pixels, twice the digits' side, as diffusers saves it."""
    dit = small_dit(sample_size=16)
    for block in dit.transformer_blocks:  # an untrained one is the identity
        torch.nn.init.normal_(block.norm1.linear.weight, std=0.5)
    DiTPipeline(dit, small_vae(), DDIMScheduler()).save_pretrained(tmp_path / "dit")
    return tmp_path / "dit"


def test_a_latent_dit_is_searched_probed_and_loaded(published, tmp_path, capsys):
    encoder = tmp_path / "encoder"
    options = ["--dataset", "digits", "--output_dir", str(encoder), "--device", "cpu"]
    assert main(["grid_search", str(published), *options, "--probe", "ridge", "--timesteps", "1,50"]) == 0
    said = capsys.readouterr().out
    assert "as an encoder with all of its blocks" in said
    cells = [entry for entry in json.loads((encoder / "results.json").read_text()) if "held_out_value" in entry]
    assert {entry["protocol"]["layer"] for entry in cells} == {f"transformer_blocks.{i}" for i in range(3)}
    winner = next(entry for entry in cells if entry["chosen"])["protocol"]
    config = AutoConfig.from_pretrained(encoder)
    assert (config.feature_layer, config.feature_timestep) == (winner["layer"], winner["timestep"])
    model = AutoModel.from_pretrained(encoder)
    assert model(torch.zeros(1, 3, 32, 32)).pooler_output.shape == (1, 16)

    # The second verb takes the encoder that is there, with what was chosen.
    weights = (encoder / "model.safetensors").stat().st_mtime_ns
    assert main(["knn", str(published), *options]) == 0
    assert "holds an encoder already" in capsys.readouterr().out
    assert (encoder / "model.safetensors").stat().st_mtime_ns == weights
    last = json.loads((encoder / "results.json").read_text())[-1]["protocol"]
    assert last["name"] == "knn" and last["layer"] == winner["layer"]


def test_where_its_encoder_goes_has_to_be_said(published, capsys):
    assert main(["grid_search", str(published), "--dataset", "digits"]) == 2
    assert "say with --output_dir where its encoder and the results go" in capsys.readouterr().err
