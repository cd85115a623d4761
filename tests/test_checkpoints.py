"""What is wrong with a checkpoint is one line that names it."""

import json

import pytest
import torch
from transformers import AutoModel, ResNetConfig, ResNetModel, ViTImageProcessorPil

from ldae import LDAEConfig, LDAEModel
from ldae.checkpoints import hash_weights, load_backbone, open_config, open_model
from ldae.places import is_local


@pytest.fixture
def folder(tmp_path):
    config = LDAEConfig.from_size("nano", image_size=16, patch_size=4, latent_dim=8)
    LDAEModel(config).save_pretrained(tmp_path / "run")
    return tmp_path / "run"


def refusal(*arguments, **options) -> str:
    with pytest.raises(ValueError) as error:
        open_model(AutoModel, *arguments, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_sound_checkpoint_opens(folder):
    assert open_config(folder).model_type == "ldae"
    assert isinstance(open_model(AutoModel, folder), LDAEModel)


def test_a_path_that_does_not_exist_is_not_looked_for_on_the_hub(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    for name in ("./nowhere", "run/nowhere", str(folder / "nowhere"), "a/b/c"):
        assert f"checkpoint={name!r} does not exist" in refusal(name)
        with pytest.raises(ValueError, match="does not exist"):
            open_config(name)
    assert not is_local("google/ddpm-cifar10-32")


def test_weights_that_are_not_finite_are_named(folder):
    model = LDAEModel.from_pretrained(folder)
    with torch.no_grad():
        model.layers[1].mlp.fc1.weight[0, :2] = float("nan")
    model.save_pretrained(folder)
    assert "2 values in layers.1.mlp.fc1.weight that are not finite numbers" in refusal(folder, "model")


@pytest.mark.parametrize("damage", ["truncated", "empty"])
def test_a_damaged_file_is_one_line(folder, damage):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000] if damage == "truncated" else b"")
    assert f"checkpoint={str(folder)!r} cannot be loaded" in refusal(folder)


def test_a_configuration_of_another_width_is_one_line(folder):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"hidden_size": 64}))
    assert f"checkpoint={str(folder)!r} cannot be loaded" in refusal(folder)


def test_a_broken_configuration_is_one_line(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be loaded") as error:
        open_config(folder)
    assert "\n" not in str(error.value)


def test_a_missing_part_of_the_weights_is_named(folder, tmp_path):
    LDAEModel.from_pretrained(folder).save_pretrained(tmp_path / "parts", max_shard_size="500KB")
    parts = sorted((tmp_path / "parts").glob("*.safetensors"))
    assert len(parts) > 1 and len({hash_weights(folder), hash_weights(tmp_path / "parts")}) == 2
    parts[-1].unlink()
    with pytest.raises(ValueError, match=f"cannot be loaded: it has no {parts[-1].name}. Give another"):
        hash_weights(tmp_path / "parts")


def test_another_network_with_weights_that_are_not_finite_is_named(tmp_path):
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8], depths=[1], num_channels=3, downsample_in_first_stage=False
    )
    network = ResNetModel(config)
    with torch.no_grad():
        next(network.parameters()).fill_(float("inf"))
    network.save_pretrained(tmp_path)
    ViTImageProcessorPil().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"perceptual_model='.*' has \d+ values in .* that are not finite numbers"):
        load_backbone(tmp_path, "perceptual_model")
