"""Saving and loading: every tensor comes back, in every precision, class, device and process."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import nn
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    PreTrainedModel,
    ViTImageProcessorPil,
)

from ldae import LDAEBackbone, LDAEForImageClassification, LDAEForPreTraining, LDAEModel
from tests.models.small_models import draw_corruption, draw_images, open_gates, small_config
from tests.processes import Runner


MODELS = [LDAEModel, LDAEForPreTraining, LDAEForImageClassification, LDAEBackbone]
COMPUTED = ("corruption.gammas", "corruption.sigmas", "objective.loss_weights", "embeddings.position_embeddings")


def tensors_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers, also those that are not saved."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


def assert_same_tensors(loaded: nn.Module, saved: nn.Module) -> None:
    loaded_tensors, saved_tensors = tensors_of(loaded), tensors_of(saved)
    assert loaded_tensors.keys() == saved_tensors.keys()
    for name, tensor in saved_tensors.items():
        assert loaded_tensors[name].dtype == tensor.dtype, name
        assert torch.equal(loaded_tensors[name], tensor), name


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What pre-training leaves."""
    path = tmp_path_factory.mktemp("denoiser")
    open_gates(LDAEForPreTraining(small_config())).save_pretrained(path)
    return path


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model_class", MODELS)
def test_every_parameter_and_buffer_comes_back(model_class: type, dtype: torch.dtype, tmp_path: Path) -> None:
    model = open_gates(model_class(small_config())).to(dtype)
    model.save_pretrained(tmp_path)
    loaded, report = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert loaded.dtype == dtype
    assert_same_tensors(loaded, model)


@pytest.mark.parametrize("model_class", MODELS)
def test_lower_precision_leaves_tokenizer_and_tables_in_float32(model_class: type, tmp_path: Path) -> None:
    model = open_gates(model_class(small_config()))
    model.save_pretrained(tmp_path)
    by_moving = open_gates(model_class(small_config())).to(torch.bfloat16)
    for low in (by_moving, model_class.from_pretrained(tmp_path, dtype=torch.bfloat16)):
        for name, buffer in low.named_buffers():
            expected = torch.bool if name.endswith("fitted") else torch.float32
            assert buffer.dtype == expected, name
            assert torch.equal(buffer, dict(model.named_buffers())[name]), name
        assert {p.dtype for p in low.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in by_moving.float().parameters()} == {torch.float32}


def test_bfloat16_models_compute_close_to_float32(folder: Path) -> None:
    exact = AutoModel.from_pretrained(folder)(draw_images()).pooler_output
    low = AutoModel.from_pretrained(folder, dtype=torch.bfloat16)
    for images in (draw_images(), draw_images().bfloat16()):
        torch.testing.assert_close(low(images).pooler_output.float(), exact, atol=0.05, rtol=0.05)
    denoiser = LDAEForPreTraining.from_pretrained(folder, dtype=torch.bfloat16)
    loss = denoiser(draw_images(), *draw_corruption()).loss
    assert loss.dtype == torch.float32
    exact_loss = LDAEForPreTraining.from_pretrained(folder)(draw_images(), *draw_corruption()).loss
    torch.testing.assert_close(loss, exact_loss, atol=0, rtol=0.02)


def test_the_encoder_of_a_denoiser_is_its_trunk(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    denoiser = LDAEForPreTraining.from_pretrained(folder)
    encoder, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert type(encoder) is LDAEModel
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert "LOAD REPORT" not in caplog.text
    assert len(encoder.layers) == 2
    assert torch.equal(encoder(draw_images()).pooler_output, denoiser.ldae(draw_images()).pooler_output)
    deep = AutoModel.from_pretrained(folder, num_hidden_layers=3)
    hidden = denoiser.ldae(draw_images(), output_hidden_states=[3]).hidden_states[3]
    assert torch.equal(deep(draw_images()).last_hidden_state, deep.normalize(hidden))


def test_a_classifier_from_a_denoiser_has_a_new_head_and_says_so(folder: Path, tmp_path: Path) -> None:
    model, report = AutoModelForImageClassification.from_pretrained(folder, num_labels=5, output_loading_info=True)
    assert type(model) is LDAEForImageClassification
    assert report["missing_keys"] == {"classifier.weight", "classifier.bias"}
    trunk = AutoModel.from_pretrained(folder)
    assert_same_tensors(model.ldae, trunk)
    assert model.classifier.weight.any()
    model.save_pretrained(tmp_path)
    assert_same_tensors(LDAEForImageClassification.from_pretrained(tmp_path), model)
    assert_same_tensors(AutoModel.from_pretrained(tmp_path), trunk)  # and an encoder from a classifier


def test_a_denoiser_from_an_encoder_misses_its_decoder(tmp_path: Path) -> None:
    open_gates(LDAEModel(small_config())).save_pretrained(tmp_path)
    model, report = LDAEForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert {name.split(".")[2] for name in report["missing_keys"] if name.startswith("ldae.layers")} == {"2"}
    assert not model.ldae.layers[2].modulation.weight.any()  # a new block starts as the identity
    assert not model.head.projection.weight.any()
    assert torch.equal(model.objective.loss_weights, LDAEForPreTraining(small_config()).objective.loss_weights)


@pytest.mark.parametrize(
    ("auto", "model_class"),
    zip([AutoModel, AutoModelForPreTraining, AutoModelForImageClassification, AutoBackbone], MODELS, strict=True),
)
def test_auto_classes_know_the_models(auto: type, model_class: type, folder: Path) -> None:
    assert type(auto.from_config(AutoConfig.from_pretrained(folder))) is model_class
    if auto is not AutoBackbone:  # transformers looks for it on the Hub alone
        assert type(auto.from_pretrained(folder)) is model_class


def test_a_backbone_from_a_denoiser(folder: Path, tmp_path: Path) -> None:
    backbone = LDAEBackbone.from_pretrained(folder, out_features=["stage1", "stage2"])
    assert [m.shape for m in backbone(draw_images()).feature_maps] == [(3, 32, 4, 4)] * 2
    backbone.save_pretrained(tmp_path)
    loaded = LDAEBackbone.from_pretrained(tmp_path)
    assert loaded.out_features == ["stage1", "stage2"]
    for ours, theirs in zip(loaded(draw_images()).feature_maps, backbone(draw_images()).feature_maps, strict=True):
        torch.testing.assert_close(
            ours, theirs, atol=1e-5, rtol=0
        )  # kernels may depend on where weights lie in memory
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


@pytest.mark.parametrize("model_class", MODELS)
def test_a_model_built_without_memory_fills_what_it_computes(model_class: type) -> None:
    with torch.device("meta"):
        model: PreTrainedModel = model_class(small_config())
    assert all(parameter.is_meta for parameter in model.parameters())
    model.to_empty(device="cpu")
    for tensor in tensors_of(model).values():
        tensor.data.fill_(1)
    model.init_weights()
    expected = dict(model_class(small_config()).named_buffers())
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, expected[name]), name
    assert any(name.endswith(COMPUTED) for name in expected)
    assert not model.base_model.layers[0].modulation.weight.any()


def test_device_map_places_whole_blocks(folder: Path) -> None:
    expected = AutoModel.from_pretrained(folder)
    for device_map in ("auto", {"": "cpu"}, "cpu"):
        placed = AutoModel.from_pretrained(folder, device_map=device_map)
        assert_same_tensors(placed, expected)
        assert torch.equal(placed(draw_images()).pooler_output, expected(draw_images()).pooler_output)
    assert LDAEModel._no_split_modules == ["LDAELayer"]


SCRIPT = """
import json, sys, torch
import ldae
from safetensors.torch import save_file
from transformers import AutoModelForPreTraining, pipeline
from PIL import Image
folder, out = sys.argv[1:]
for dtype in ("float32", "bfloat16"):
    model = AutoModelForPreTraining.from_pretrained(f"{folder}/{dtype}")
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    save_file({k: v.detach().contiguous().clone() for k, v in tensors.items()}, f"{out}/{dtype}.safetensors")
features = pipeline("image-feature-extraction", model=f"{folder}/float32", device="cpu")
pooled = features([Image.open(f"{folder}/{i}.png") for i in range(2)], pool=True)
print(json.dumps({"pooled": pooled}))
"""


def test_another_process_loads_the_same_tensors_and_the_pipeline_the_same_features(
    tmp_path: Path, run_python: Runner
) -> None:
    from safetensors.torch import load_file

    models = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        models[name] = open_gates(LDAEForPreTraining(small_config())).to(dtype)
        models[name].save_pretrained(tmp_path / name)
    processor = ViTImageProcessorPil(
        size={"height": 16, "width": 16}, image_mean=[0.5] * 3, image_std=[0.5] * 3, do_convert_rgb=True
    )
    processor.save_pretrained(tmp_path / "float32")
    images = [
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (20, 24, 3), dtype=np.uint8)) for i in range(2)
    ]
    for i, image in enumerate(images):
        image.save(tmp_path / f"{i}.png")
    (tmp_path / "out").mkdir()
    done = run_python(SCRIPT, tmp_path, tmp_path / "out")
    for name, model in models.items():
        loaded, saved = load_file(tmp_path / "out" / f"{name}.safetensors"), tensors_of(model)
        assert loaded.keys() == saved.keys()
        assert all(torch.equal(loaded[k], saved[k]) for k in saved)
    printed = json.loads(done.stdout.splitlines()[-1])
    pixels = processor(images, return_tensors="pt")["pixel_values"]
    expected = models["float32"].ldae(pixels).pooler_output  # (2, C)
    torch.testing.assert_close(torch.tensor(printed["pooled"])[:, 0], expected, atol=1e-5, rtol=0)


def test_the_version_is_one_that_the_project_supports() -> None:
    assert tuple(int(part) for part in transformers.__version__.split(".")[:2]) >= (5, 17)
