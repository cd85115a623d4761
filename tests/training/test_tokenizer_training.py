"""Latent tokenizers trained by the loop: what their folders hold, resuming, and denoisers that begin with them."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForImageClassification

from ldae import LDAEForPreTraining, LDAEModel
from ldae.processes import make_accelerator
from ldae.results import read_results
from ldae.tokenizers.files import load_tokenizer
from ldae.training.classifiers import ResNetClassifierConfig, train_resnet_classifier
from ldae.training.memory import blank_loss, count_step_bytes
from ldae.training.pretraining import pretrain
from ldae.training.tokenizer_training import TokenizerTask, tokenizer_recipe, train_tokenizer
from tests.training.conftest import stop_after


TINY_VAE = {"block_out_channels": [8, 16], "layers_per_block": 1, "latent_channels": 1, "norm_num_groups": 4}
LATENT = {"input_space": "latent", "prediction_target": "noise", "loss_weighting": "uniform"}
KINDS = {
    "pca": {},
    "pixel": {"latent_dim": 3},
    "ae": {},
    "vae": {"kl_weight": 0.01},
    "conv_vae": {"conv_vae_config": TINY_VAE},
}
BUDGET = {
    "tokenizer_images": 192,
    "tokenizer_batch_size": 32,
    "tokenizer_learning_rate": 3e-3,
    "horizontal_flip": False,
}
RESNET = ResNetClassifierConfig(images=192, total_batch_size=32, hidden_sizes=[8, 16], depths=[1, 1], embedding_size=8)


@pytest.fixture
def make(make_recipe):
    def make_kind(folder: str, kind: str, **overrides: object):
        return make_recipe(folder, latent_tokenizer=kind, **{**LATENT, **KINDS[kind], **BUDGET, **overrides})

    return make_kind


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_folder_holds_what_a_run_needs(kind, make, tmp_path):
    recipe = make("tokenizer", kind)
    folder = train_tokenizer(recipe)
    tokenizer = load_tokenizer(folder, recipe.model_config())
    assert bool(tokenizer.fitted) and (folder / "pictures" / "reconstruction.png").is_file()
    found = {r["metric"]: r for r in read_results(folder)}
    assert set(found) == {"mse", "psnr", "ssim"} and all(r["n"] == 360 for r in found.values())
    assert found["psnr"]["value"] == pytest.approx(10 * math.log10(4 / found["mse"]["value"]), abs=1e-3)
    before = (folder / "tokenizer.safetensors").read_bytes()
    train_tokenizer(recipe)
    assert (folder / "tokenizer.safetensors").read_bytes() == before

    run = pretrain(make("run", kind, tokenizer=str(folder), images=64)).path
    model = LDAEForPreTraining.from_pretrained(run)
    for name, tensor in tokenizer.state_dict().items():
        assert torch.equal(model.ldae.tokenizer.state_dict()[name], tensor), name
    images = torch.rand(4, 3, 16, 16) * 2 - 1
    assert AutoModel.from_pretrained(run)(images).pooler_output.isfinite().all()
    # Latents have mean 0 and variance 1 on the data that they were measured on.
    from ldae.data import iterate_once, open_images, prepare_images

    batch = next(iterate_once(open_images(recipe.data), image_size=16, batch_size=1437))
    z0 = model.ldae.encode(prepare_images(batch.images, batch.positions, 0, image_size=16)).flatten(0, 1)
    assert z0.var(dim=0).mean().item() == pytest.approx(1, abs=0.3)
    assert z0.mean().abs().item() < 0.3


@pytest.mark.parametrize("kind", ["vae", "conv_vae"])
def test_training_is_stopped_and_resumed_to_the_same_bytes(kind, make):
    whole = train_tokenizer(make("whole", kind, adversarial_weight=0.5))
    parts = make("parts", kind, adversarial_weight=0.5)
    stop_after(TokenizerTask(tokenizer_recipe(parts)), 3)
    assert not (Path(parts.training.output_dir) / "tokenizer.safetensors").exists()
    folder = train_tokenizer(parts)
    assert (folder / "tokenizer.safetensors").read_bytes() == (whole / "tokenizer.safetensors").read_bytes()
    losses = [[r["loss"] for r in records(f) if r["event"] == "train"] for f in (whole, folder)]
    assert losses[0] == losses[1]


def test_a_run_without_a_tokenizer_trains_its_own_first(make):
    folder = pretrain(make("run", "ae", images=64)).path
    own = load_file(folder / "tokenizer" / "tokenizer.safetensors")
    model = load_file(folder / "model.safetensors")
    assert all(torch.equal(model[f"ldae.tokenizer.{name}"], tensor) for name, tensor in own.items())


def test_all_four_losses_of_the_baseline(make, tmp_path):
    recipe = make("vqgan", "conv_vae", perceptual_weight=1.0, adversarial_weight=0.5, adversarial_start_images=96)
    classifier = train_resnet_classifier(recipe, RESNET, tmp_path / "classifier")
    recipe.tokenizer.perceptual_model = str(classifier)
    folder = train_tokenizer(recipe)
    log = [r for r in records(folder) if r["event"] == "train"]
    assert {"mse", "kl", "perceptual", "generator", "discriminator", "adaptive_weight"} <= set(log[-1])
    assert log[0].get("discriminator", 0) == 0 and log[-1]["discriminator"] > 0
    names = load_file(next((folder / "checkpoints").iterdir()) / "model.safetensors")
    assert not [name for name in names if "perceptual" in name]


def test_the_memory_of_the_adversary_is_counted_before_it_starts(make):
    def count(**fields):
        task = TokenizerTask(tokenizer_recipe(make("memory", "conv_vae", **fields)))
        task.setup(make_accelerator(), None)
        task.network = task.module.train()
        return count_step_bytes(task.module, lambda images: blank_loss(task, images, "cpu"))

    at_once, later = (count(adversarial_weight=0.5, adversarial_start_images=start) for start in (0, 96))
    assert later == at_once != count()


def test_an_autoencoder_of_diffusers_serves_by_its_folder(make, tmp_path):
    from ldae.models.tokenizer_ldae import build_conv_vae

    recipe = make("run", "conv_vae", images=64, tokenizer=str(tmp_path / "vae"))
    torch.manual_seed(0)
    vae = build_conv_vae(recipe.model_config())
    vae.save_pretrained(tmp_path / "vae")
    model = LDAEForPreTraining.from_pretrained(pretrain(recipe).path)
    assert bool(model.ldae.tokenizer.fitted) and model.ldae.tokenizer.explained_variance.ne(1).all()
    for name, tensor in vae.state_dict().items():
        assert torch.equal(model.ldae.tokenizer.vae.state_dict()[name], tensor)
    other = make(
        "other", "conv_vae", conv_vae_config={**TINY_VAE, "layers_per_block": 2}, tokenizer=str(tmp_path / "vae")
    )
    with pytest.raises(ValueError, match=r"is not the network that conv_vae_config describes; set .*layers_per_block"):
        pretrain(other)


def test_a_tokenizer_of_another_kind_is_refused(make, tmp_path):
    folder = train_tokenizer(make("tokenizer", "ae"))
    with pytest.raises(ValueError, match="is a PatchAutoencoder, but latent_tokenizer='pca' needs a PatchPCA"):
        load_tokenizer(folder, make("run", "pca").model_config())
    with pytest.raises(ValueError, match="holds neither tokenizer"):
        load_tokenizer(tmp_path / "nowhere", make("run", "pca").model_config())


def test_a_damaged_tokenizer_is_refused_in_one_line_and_an_encoders_own_is_taken(make, tmp_path):
    config = make("run", "pca").model_config()
    encoder = LDAEModel(config)
    encoder.save_pretrained(tmp_path / "encoder")
    found = load_tokenizer(tmp_path / "encoder", config)
    assert torch.equal(found.components, encoder.tokenizer.components)
    (tmp_path / "encoder" / "config.json").write_text("{")
    (tmp_path / "other").mkdir()
    save_file({"a": torch.zeros(1)}, tmp_path / "other" / "tokenizer.safetensors")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "tokenizer.safetensors").write_bytes(bytes(100))
    for name, reason in (("encoder", "config.json"), ("other", "was not written by ldae"), ("torn", "header")):
        with pytest.raises(ValueError, match=rf"tokenizer='.*{name}' cannot be loaded: .*{reason}.*"):
            load_tokenizer(tmp_path / name, config)


def test_rows_that_differ_elsewhere_share_a_tokenizer(make):
    one = make("one", "pca", prediction_target="latent", loss_weighting="gamma2", images=64)
    two = make(
        "two", "pca", prediction_target="noise", noise_schedule="constant", random_resized_crop=False, images=32
    )
    shared = [tokenizer_recipe(recipe, "folder").resolved() for recipe in (one, two)]
    assert shared[0] == shared[1]
    assert tokenizer_recipe(make("three", "pca", latent_dim=5), "folder").resolved() != shared[0]


def test_a_classifier_learns_is_resumed_and_loads(make, tmp_path):
    recipe = make("unused", "pca")
    settings = ResNetClassifierConfig(
        images=1024, total_batch_size=32, hidden_sizes=[16, 32], depths=[1, 1], embedding_size=16
    )
    whole = train_resnet_classifier(recipe, settings, tmp_path / "whole")
    log = [r["loss"] for r in records(whole) if r["event"] == "train"]
    assert log[-1] < 0.85 * log[0]
    model = AutoModelForImageClassification.from_pretrained(whole)
    assert model.config.id2label[3] == "3" and model(torch.zeros(2, 3, 16, 16)).logits.shape == (2, 10)
    before = (whole / "model.safetensors").stat().st_mtime_ns
    train_resnet_classifier(recipe, settings, whole)
    assert (whole / "model.safetensors").stat().st_mtime_ns == before
