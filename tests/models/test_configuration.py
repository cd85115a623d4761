"""The fields, the table of what makes sense, and what survives a config.json."""

import copy
import json

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError

from ldae import (
    DDAEBackbone,
    DDAEConfig,
    DDAEForImageClassification,
    DDAEForPreTraining,
    DDAEModel,
    LDAEBackbone,
    LDAEConfig,
    LDAEForImageClassification,
    LDAEForPreTraining,
    LDAEModel,
)
from ldae.models.configuration_ldae import CHOICES, MODEL_SIZES
from tests.models.small_models import small_config


def test_the_defaults_are_the_papers() -> None:
    config = LDAEConfig()
    paper = {
        "latent_tokenizer": "pca",
        "latent_dim": 32,
        "noise_schedule": "linear_sigma",
        "num_train_timesteps": 1000,
        "prediction_target": "image",
        "input_space": "image",
        "loss_weighting": "inverse_variance",
        "residual_weight": 0.1,
        "num_class_embeds": None,
        "feature_timestep": 10,
        "feature_layer": None,
        "project_clean_input": True,
        "layer_norm_eps": 1e-6,
        "hidden_act": "gelu_pytorch_tanh",
        "conditioning_size": 192,
    }
    assert {name: getattr(config, name) for name in paper} == paper
    assert config.sigma_max == pytest.approx(2**0.5)
    assert config.sigma**2 == pytest.approx(1 / 3)
    assert (config.patch_dim, config.num_patches, config.total_num_hidden_layers) == (768, 256, 24)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        *[({name: "other"}, f"{name}='other' is unknown; choose one of {CHOICES[name][0]}") for name in CHOICES],
        *[
            ({name: 0}, f"{name}=0 is invalid; it must be positive")
            for name in (
                "image_size patch_size num_channels hidden_size num_hidden_layers num_attention_heads "
                "intermediate_size conditioning_size latent_dim num_train_timesteps layer_norm_eps sigma_max sigma"
            ).split()
        ],
        ({"image_size": 18}, "image_size=18 is invalid; it must be a multiple of patch_size=4"),
        ({"hidden_size": 36, "num_attention_heads": 8}, "must be a multiple of num_attention_heads=8"),
        ({"hidden_size": 30, "num_attention_heads": 5}, "hidden_size=30 .* a multiple of 4"),
        ({"decoder_num_hidden_layers": -1}, "decoder_num_hidden_layers=-1 .* 0 or more"),
        ({"latent_dim": 49}, r"latent_dim=49 .* at most num_channels \* patch_size\^2 = 48"),
        ({"feature_timestep": 1000}, "feature_timestep=1000 .* from 0 to num_train_timesteps - 1 = 999"),
        ({"feature_timestep": -1}, "feature_timestep=-1 .* from 0"),
        ({"feature_layer": 3}, "feature_layer=3 .* None or from 1 to num_hidden_layers=2"),
        ({"feature_layer": 0}, "feature_layer=0 .* None or from 1"),
        ({"beta_start": 0.5}, "beta_start=0.5 .* 0 < beta_start <= beta_end < 1"),
        ({"beta_end": 1.0}, "beta_start=.* such that 0 < beta_start <= beta_end < 1"),
        ({"residual_weight": 1.5}, "residual_weight=1.5 .* between 0 and 1"),
        ({"class_dropout_prob": 1}, "class_dropout_prob=1 .* from 0 to below 1"),
        ({"num_class_embeds": 0}, "num_class_embeds=0 .* None or positive"),
        (
            {"prediction_target": "noise"},
            "loss_weighting='inverse_variance' .* 'uniform' with prediction_target='noise'",
        ),
        ({"project_clean_input": False, "input_space": "latent"}, "project_clean_input=False .* True unless"),
        ({"project_clean_input": False, "noise_schedule": "linear_beta"}, "project_clean_input=False .* gamma = 1"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_config(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"decoder_num_hidden_layers": 0},
        {"latent_dim": 48},
        {"feature_layer": 2, "feature_timestep": 0},
        {"prediction_target": "noise", "loss_weighting": "uniform"},
        {"project_clean_input": False},
        {"project_clean_input": False, "noise_schedule": "constant"},
        {"residual_weight": 1, "sigma_max": 1, "class_dropout_prob": 0},
        {"num_class_embeds": 10, "qkv_bias": False, "num_channels": 1},
    ],
)
def test_what_makes_sense_survives_json(fields: dict, tmp_path) -> None:
    config = small_config(**fields)
    config.save_pretrained(tmp_path)
    loaded = LDAEConfig.from_pretrained(tmp_path)
    assert loaded.to_json_string() == config.to_json_string()
    assert {name: getattr(loaded, name) for name in fields} == fields
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["model_type"] == "ldae"
    assert saved.keys() >= fields.keys()


def test_a_field_of_the_wrong_type_is_refused() -> None:
    with pytest.raises(StrictDataclassError, match="hidden_size"):
        small_config(hidden_size="wide")


def test_a_misspelt_field_is_refused_with_the_right_one(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"laten_dim=8: LDAEConfig has no such field; did you mean 'latent_dim'\?"):
        small_config(laten_dim=8)
    with pytest.raises(ValueError, match="qqq=1: LDAEConfig has no such field; see the fields"):
        small_config(qqq=1)
    small_config().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"noise_schedul": "constant"}))
    with pytest.raises(ValueError, match="did you mean 'noise_schedule'"):
        LDAEConfig.from_pretrained(tmp_path)


def test_what_transformers_itself_writes_is_not_refused(tmp_path) -> None:
    small_config(num_labels=3, problem_type="regression", dtype="bfloat16").save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    extra = {
        "auto_map": {"AutoModel": "modeling_ldae.LDAEModel"},
        "torch_dtype": "float32",
        "tie_word_embeddings": False,
    }
    path.write_text(json.dumps(json.loads(path.read_text()) | extra))
    loaded = LDAEConfig.from_pretrained(tmp_path)
    assert loaded.num_labels == 3
    assert loaded.auto_map == extra["auto_map"]


def test_an_older_config_gets_the_defaults_of_fields_that_it_lacks(tmp_path) -> None:
    old = {"model_type": "ldae", "image_size": 16, "patch_size": 4, "latent_dim": 8}
    (tmp_path / "config.json").write_text(json.dumps(old))
    loaded = LDAEConfig.from_pretrained(tmp_path)
    assert loaded.latent_dim == 8
    assert loaded.residual_weight == 0.1
    assert loaded.total_num_hidden_layers == 24


def test_assignment_is_checked_by_validate() -> None:
    config = small_config()
    config.feature_timestep = 5000
    with pytest.raises(StrictDataclassError, match="feature_timestep=5000"):
        config.validate()


@pytest.mark.parametrize("name", MODEL_SIZES)
def test_sizes_have_the_parameters_that_their_numbers_give(name: str) -> None:
    config = LDAEConfig.from_size(name, image_size=32, patch_size=4, latent_dim=16)
    width, encoder, decoder, _ = MODEL_SIZES[name]
    with torch.device("meta"):
        model = LDAEForPreTraining(config)
    c, d_in = width // 4, config.patch_dim

    def linear(n_in: int, n_out: int) -> int:
        return (n_in + 1) * n_out

    block = 4 * linear(width, width) + linear(width, 4 * width) + linear(4 * width, width) + linear(c, 6 * width)
    head = linear(c, 2 * width) + linear(width, d_in)
    embedders = linear(d_in, width) + linear(256, c) + linear(c, c)
    assert sum(p.numel() for p in model.parameters()) == (encoder + decoder) * block + head + embedders
    assert config.hidden_size // config.num_attention_heads == 64


def test_a_size_takes_further_fields_and_refuses_unknown_names() -> None:
    config = LDAEConfig.from_size("nano", hidden_size=64, num_attention_heads=2)
    assert (config.hidden_size, config.intermediate_size, config.conditioning_size) == (64, 256, 16)
    with pytest.raises(ValueError, match="size='mega' is unknown; choose one of nano, tiny"):
        LDAEConfig.from_size("mega")


def test_the_encoder_is_cut_anew_when_it_is_loaded(tmp_path) -> None:
    LDAEForPreTraining(small_config()).save_pretrained(tmp_path)
    for cut in (1, 2, 3):
        config = LDAEConfig.from_pretrained(tmp_path, num_hidden_layers=cut)
        assert (config.num_hidden_layers, config.decoder_num_hidden_layers) == (cut, 3 - cut)
        assert config.out_features == [f"stage{cut}"]
        assert len(LDAEModel.from_pretrained(tmp_path, num_hidden_layers=cut).layers) == cut
    with pytest.raises(ValueError, match="num_hidden_layers=4 cuts a stack of 3 blocks; give a number from 1 to 3"):
        LDAEModel.from_pretrained(tmp_path, num_hidden_layers=4)
    with pytest.raises(ValueError, match="num_hidden_layers=0 cuts"):
        LDAEModel.from_pretrained(tmp_path, num_hidden_layers=0)


def test_fields_are_overridden_before_they_are_checked(tmp_path) -> None:
    LDAEModel(small_config()).save_pretrained(tmp_path)
    config = LDAEConfig.from_pretrained(tmp_path, num_train_timesteps=4, feature_timestep=3)
    assert (config.num_train_timesteps, config.feature_timestep) == (4, 3)
    model = LDAEModel.from_pretrained(tmp_path, feature_timestep=700, feature_layer=1)
    assert (model.config.feature_timestep, model.config.feature_layer) == (700, 1)
    with pytest.raises(ValueError, match="feature_timestep=2000"):
        LDAEModel.from_pretrained(tmp_path, feature_timestep=2000)


SMALL_UNET = {
    "sample_size": 16,
    "block_out_channels": [8, 16],
    "norm_num_groups": 4,
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D"] * 2,
    "up_block_types": ["UpBlock2D"] * 2,
}


@pytest.mark.parametrize(
    ("model_class", "fields"),
    [
        (LDAEModel, {}),
        (LDAEForPreTraining, {}),
        (LDAEForImageClassification, {}),
        (LDAEBackbone, {}),
        (DDAEModel, {"self_conditioning": True}),
        (DDAEModel, {"feature_layer": "last"}),
        (DDAEForPreTraining, {"self_conditioning": True}),
        (DDAEForImageClassification, {}),
        (DDAEBackbone, {}),
        (DDAEBackbone, {"out_features": ["mid_block.resnets.0", "last"]}),
    ],
)
def test_constructors_leave_their_configuration_unchanged(model_class, fields):
    is_ddae = model_class.__name__.startswith("DDAE")
    config = DDAEConfig(denoiser_config=SMALL_UNET, **fields) if is_ddae else small_config(**fields)
    before = copy.deepcopy(config.to_dict())
    model = model_class(config)
    assert config.to_dict() == before
    if is_ddae:
        assert before["hidden_size"] is None and model.config.hidden_size is not None
        assert all(module.config is model.config for module in model.modules() if isinstance(module, DDAEModel))
