import json

import pytest
import torch
from safetensors.torch import load_file

from ldae import LDAEForImageClassification, LDAEModel
from ldae.export.fold import fold
from ldae.export.timm_vit import run_timm, save_timm, timm_arguments
from tests.models.small_models import draw_images, open_gates, small_config


# timm's VisionTransformer(class_token=False, global_pool="avg", fc_norm=False), of each block its two linear maps too.
OUTSIDE = {"pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias", "norm.weight", "norm.bias"}
IN_A_BLOCK = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")


def test_the_file_has_timms_names_and_shapes(tmp_path):
    save_timm(fold(open_gates(LDAEModel(small_config()))), tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    blocks = {f"blocks.{i}.{part}.{kind}" for i in (0, 1) for part in IN_A_BLOCK for kind in ("weight", "bias")}
    assert state.keys() == OUTSIDE | blocks
    assert state["pos_embed"].shape == (1, 16, 32)
    assert state["patch_embed.proj.weight"].shape == (32, 3, 4, 4)
    assert state["blocks.1.attn.qkv.weight"].shape == (96, 32)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architecture"] == "vit_base_patch16_224" and config["num_classes"] == 0
    assert config["model_args"]["class_token"] is False and config["model_args"]["fc_norm"] is False
    assert config["pretrained_cfg"]["input_size"] == [3, 16, 16]


def test_a_classifier_has_a_head_and_its_names(tmp_path):
    model = open_gates(LDAEForImageClassification(small_config(num_labels=2)))
    save_timm(fold(model), tmp_path, {0: "cat", 1: "dog"})
    assert load_file(tmp_path / "model.safetensors")["head.weight"].shape == (2, 32)
    assert json.loads((tmp_path / "config.json").read_text())["label_names"] == ["cat", "dog"]


@pytest.mark.parametrize("width", [61, 112, 115])
def test_timm_finds_the_mlps_width_again(width):
    """It takes a ratio and rounds the product down: of 61 / 28, times 28, that would make 60."""
    vit = fold(LDAEModel(small_config(hidden_size=28, intermediate_size=width)))
    assert int(28 * timm_arguments(vit)["mlp_ratio"]) == width


@torch.no_grad()
def test_timm_itself_opens_the_folder(tmp_path):
    timm = pytest.importorskip("timm")
    model = open_gates(LDAEModel(small_config()))
    save_timm(fold(model), tmp_path)
    images, opened = draw_images(), timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    torch.testing.assert_close(opened(images), model(images).pooler_output, rtol=0, atol=2e-5)
    found = run_timm(tmp_path, images)["last_hidden_state"]
    torch.testing.assert_close(found, model(images).last_hidden_state, rtol=0, atol=2e-5)
