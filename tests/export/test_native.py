import json

import torch
from safetensors import safe_open

from ldae import LDAEForImageClassification, LDAEModel
from ldae.export.fold import fold
from ldae.export.native import build_native, save_native
from tests.models.small_models import draw_images, open_gates, small_config


# What transformers 4.57 looks for; it would load random weights, with no more than a warning, for any other name.
SIGLIP_4 = {
    "vision_model.embeddings.patch_embedding.weight",
    "vision_model.embeddings.position_embedding.weight",
    "vision_model.encoder.layers.1.layer_norm1.weight",
    "vision_model.encoder.layers.1.self_attn.out_proj.bias",
    "vision_model.encoder.layers.1.mlp.fc2.weight",
    "vision_model.head.attention.in_proj_weight",
    "vision_model.head.probe",
    "vision_model.post_layernorm.bias",
}
IJEPA_4 = {
    "ijepa.embeddings.patch_embeddings.projection.weight",
    "ijepa.embeddings.position_embeddings",
    "ijepa.encoder.layer.1.attention.attention.query.weight",
    "ijepa.encoder.layer.1.attention.output.dense.bias",
    "ijepa.encoder.layer.1.intermediate.dense.weight",
    "ijepa.encoder.layer.1.output.dense.weight",
    "ijepa.encoder.layer.1.layernorm_before.weight",
    "ijepa.layernorm.weight",
    "classifier.bias",
}
FIELDS_4 = set(
    "hidden_size intermediate_size num_hidden_layers num_attention_heads num_channels image_size patch_size "
    "hidden_act layer_norm_eps".split()
)


def keys_of(folder) -> set[str]:
    with safe_open(folder / "model.safetensors", framework="pt") as tensors:
        return set(tensors.keys())


def test_an_encoders_file_has_the_names_of_both_major_versions(tmp_path):
    native = build_native(fold(open_gates(LDAEModel(small_config()))))
    save_native(native, tmp_path)
    assert keys_of(tmp_path) >= SIGLIP_4
    assert keys_of(tmp_path) == {f"vision_model.{name}" for name in native.state_dict()}
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "siglip_vision_model" and config.keys() >= FIELDS_4
    assert config["hidden_act"] == "gelu_pytorch_tanh" and config["layer_norm_eps"] == 1e-6
    assert "auto_map" not in config


def test_a_classifiers_file_has_the_names_of_both_major_versions(tmp_path):
    model = open_gates(LDAEForImageClassification(small_config(num_labels=2)))
    save_native(build_native(fold(model), {0: "cat", 1: "dog"}), tmp_path)
    assert keys_of(tmp_path) >= IJEPA_4
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "ijepa" and config.keys() >= FIELDS_4 | {"qkv_bias"}
    assert config["id2label"] == {"0": "cat", "1": "dog"}


def test_the_same_checkpoint_gives_the_same_bytes(tmp_path):
    """Nothing in the file is left as it was drawn, not even in the pooling head's unused half."""
    vit = fold(open_gates(LDAEModel(small_config())))
    for seed in (0, 1):
        torch.manual_seed(seed)
        save_native(build_native(vit), tmp_path / str(seed))
    first, second = (tmp_path / str(seed) / "model.safetensors" for seed in (0, 1))
    assert first.read_bytes() == second.read_bytes()


@torch.no_grad()
def test_pooling_is_the_mean_whatever_the_attention(tmp_path):
    native = build_native(fold(open_gates(LDAEModel(small_config()))))
    for attention in ("eager", "sdpa"):
        native.set_attn_implementation(attention)
        outputs = native(draw_images())
        torch.testing.assert_close(outputs.pooler_output, outputs.last_hidden_state.mean(dim=1), rtol=0, atol=1e-6)
