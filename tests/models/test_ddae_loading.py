"""Saving and loading DDAE: every parameter and buffer comes back, in every precision and process, and in pipelines."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForImageClassification

from ldae import DDAEConfig, DDAEForImageClassification, DDAEModel, LDAEModel, save_image_processor
from tests.models.small_diffusers import small_conditional_unet, small_dit, small_unet, small_vae
from tests.models.small_models import open_gates, small_config
from tests.models.test_loading import assert_same_tensors, tensors_of
from tests.processes import Runner


PROMPT = torch.linspace(-1, 1, 5 * 12).view(5, 12)
MODELS: dict[str, Any] = {
    "unet": lambda: DDAEModel.from_diffusers(small_unet("AttnDownBlock2D", "AttnUpBlock2D")),
    "conditional_unet": lambda: DDAEModel.from_diffusers(
        small_conditional_unet(), vae=small_vae(), empty_prompt=PROMPT
    ),
    "dit": lambda: DDAEModel.from_diffusers(small_dit(), vae=small_vae()),
    "ldae": lambda: DDAEModel.from_diffusers(open_gates(LDAEModel(small_config())), "layers.0"),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

LOAD_IN_A_NEW_PROCESS = """
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file
import ldae
from transformers import AutoModel

for folder in map(Path, sys.argv[1:]):
    model = AutoModel.from_pretrained(folder)
    assert type(model) is ldae.DDAEModel and not model.training
    for parameter in model.parameters():  # a memory-mapped file is not aligned, and kernels then round differently
        parameter.data = parameter.data.clone()
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    pixels = torch.linspace(-1, 1, 3 * 16 * 16).view(1, 3, 16, 16)
    with torch.no_grad():
        tensors["output"] = model(pixels).last_hidden_state
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, folder / "seen.safetensors")
"""


@torch.no_grad()
def test_every_parameter_and_buffer_comes_back_in_a_new_process(tmp_path: Path, run_python: Runner) -> None:
    expected = {}
    for name, make in MODELS.items():
        for precision, dtype in DTYPES.items():
            model = make().to(dtype)
            folder = tmp_path / f"{name}_{precision}"
            model.save_pretrained(folder)
            assert [path.name for path in folder.iterdir() if path.suffix == ".safetensors"] == ["model.safetensors"]
            pixels = torch.linspace(-1, 1, 3 * 16 * 16).view(1, 3, 16, 16)
            expected[folder] = tensors_of(model) | {"output": model(pixels).last_hidden_state}
            assert expected[folder]["output"].dtype == dtype
    run_python(LOAD_IN_A_NEW_PROCESS, *expected)
    for folder, tensors in expected.items():
        seen = load_file(folder / "seen.safetensors")
        assert seen.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert seen[name].dtype == tensor.dtype, f"{folder.name} {name}"
            assert torch.equal(seen[name], tensor), f"{folder.name} {name}"
    computed = tensors_of(MODELS["dit"]()).keys() - MODELS["dit"]().state_dict().keys()
    assert computed == {"corruption.gammas", "corruption.sigmas", "denoiser.pos_embed.pos_embed"}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS.keys())
def test_loading_in_lower_precision_is_loading_and_casting(make: Any, tmp_path: Path) -> None:
    model = make()
    model.save_pretrained(tmp_path)
    low, report = DDAEModel.from_pretrained(tmp_path, dtype=torch.bfloat16, output_loading_info=True)
    assert not any(report.values()), report
    assert_same_tensors(low, model.to(torch.bfloat16))
    assert {p.dtype for p in low.parameters()} == {torch.bfloat16}


def test_noise_tables_stay_in_float32(tmp_path: Path) -> None:
    model = DDAEModel.from_diffusers(small_unet()).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    for each in (model, DDAEModel.from_pretrained(tmp_path)):
        assert each.corruption.gammas.dtype == torch.float32
    exact = DDAEModel.from_diffusers(small_unet())
    images = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        low, high = model(images).pooler_output.float(), exact(images).pooler_output
    torch.testing.assert_close(low, high, atol=0.05, rtol=0.05)


def test_a_fresh_model_has_the_initial_weights_of_diffusers(tmp_path: Path) -> None:
    unet = small_unet("AttnDownBlock2D", "AttnUpBlock2D")
    model = DDAEModel(DDAEModel.from_diffusers(unet).config)
    own = tensors_of(unet)
    for name, tensor in model.denoiser.named_parameters():
        bound = own[name].abs().max()
        assert tensor.isfinite().all()
        assert tensor.abs().max() <= 1.5 * bound + 1e-6, name
        assert not torch.equal(tensor, own[name]) or "norm" in name or not bound, name
    dit = small_dit()
    fresh = DDAEModel(DDAEModel.from_diffusers(dit).config)
    assert torch.equal(fresh.denoiser.pos_embed.pos_embed, dit.pos_embed.pos_embed)


def test_a_checkpoint_is_cut_again_where_it_is_loaded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    unet = small_unet()
    DDAEModel.from_diffusers(unet, "last").save_pretrained(tmp_path)
    model = AutoModel.from_pretrained(tmp_path, feature_layer="mid_block.resnets.1", feature_timestep=40)
    assert "LOAD REPORT" not in caplog.text
    direct = DDAEModel.from_diffusers(unet, "mid_block.resnets.1", 40)
    assert_same_tensors(model, direct)
    assert (model.config.hidden_size, model.config.feature_timestep) == (16, 40)
    images = torch.rand(1, 3, 16, 16)
    torch.testing.assert_close(model(images).pooler_output, direct(images).pooler_output)
    model.save_pretrained(tmp_path / "shallow")
    with pytest.raises(ValueError, match=r"feature_layer='up_blocks.1.resnets.0' does not exist in this checkpoint"):
        AutoModel.from_pretrained(tmp_path / "shallow", feature_layer="up_blocks.1.resnets.0")


def test_a_classifier_from_an_encoder_and_back(tmp_path: Path) -> None:
    encoder = MODELS["dit"]()
    encoder.save_pretrained(tmp_path / "encoder")
    model, report = AutoModelForImageClassification.from_pretrained(
        tmp_path / "encoder", num_labels=5, output_loading_info=True
    )
    assert type(model) is DDAEForImageClassification
    assert report["missing_keys"] == {"classifier.weight", "classifier.bias"}
    assert_same_tensors(model.ddae, encoder)
    images = torch.rand(3, 3, 16, 16)
    outputs = model(images, labels=torch.tensor([0, 4, 2]))
    assert torch.equal(outputs.logits, model.classifier(encoder(images).pooler_output))
    outputs.loss.backward()
    assert model.ddae.denoiser.transformer_blocks[0].attn1.to_q.weight.grad.any()
    assert all(parameter.grad is None for parameter in model.ddae.vae.parameters()), "the autoencoder is frozen"
    model.save_pretrained(tmp_path / "classifier")
    assert_same_tensors(DDAEForImageClassification.from_pretrained(tmp_path / "classifier"), model)
    assert_same_tensors(AutoModel.from_pretrained(tmp_path / "classifier"), encoder)


def test_auto_classes_build_from_a_configuration() -> None:
    config = MODELS["unet"]().config
    assert type(AutoModel.from_config(config)) is DDAEModel
    assert type(AutoModelForImageClassification.from_config(config)) is DDAEForImageClassification


PIPELINES = """
import json, sys
import ldae
from PIL import Image
from transformers import pipeline

image = Image.open(sys.argv[3])
features = pipeline("image-feature-extraction", model=sys.argv[1])
classify = pipeline("image-classification", model=sys.argv[2])
print(json.dumps([features(image, pool=True)[0], len(features(image)[0]), classify(image, top_k=3)]))
"""


def test_pipelines_in_a_new_process(tmp_path: Path, run_python: Runner) -> None:
    torch.manual_seed(5)
    encoder = MODELS["unet"]()
    labels = ("ash", "oak", "yew")
    names = {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
    config = DDAEConfig.from_dict(encoder.config.to_dict(), **names)
    model = DDAEForImageClassification(config).eval()
    model.ddae = encoder
    for name, each in {"encoder": encoder, "classifier": model}.items():
        each.save_pretrained(tmp_path / name)
        save_image_processor(tmp_path / name, each.config)
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    printed = run_python(PIPELINES, tmp_path / "encoder", tmp_path / "classifier", tmp_path / "image.png").stdout
    pooled, tokens, scores = json.loads(printed.splitlines()[-1])
    images = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        torch.testing.assert_close(torch.tensor(pooled), encoder(images).pooler_output[0])
        expected = model(images).logits.softmax(1)[0]
    assert tokens == 64
    found = {score["label"]: score["score"] for score in scores}
    assert [found[name] for name in labels] == pytest.approx(expected.tolist(), abs=1e-5)
