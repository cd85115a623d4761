"""Noise-conditional classifiers: where they start, how they fold, and that a stopped run goes on bit for bit."""

from dataclasses import replace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForImageClassification

from ldae import DDAEConfig, DDAEForImageClassification, DDAEForPreTraining, LDAEConfig, LDAEForPreTraining
from ldae.data import DataConfig, open_probe_images
from ldae.errors import RunError
from ldae.training.classifiers import (
    SETTINGS_FILE,
    NoiseClassifierConfig,
    NoiseClassifierTask,
    NormalizedClassifier,
    build_noise_classifier,
    fold,
    noise_classifier_recipe,
    train_noise_classifier,
)
from tests.models.test_ddae_pretraining import UNET
from tests.training.conftest import stop_after


DIGITS = DataConfig("digits", num_workers=0)


@pytest.fixture
def classifier(tmp_path):
    torch.manual_seed(0)
    ddae = DDAEForPreTraining(DDAEConfig(denoiser_config=UNET | {"dropout": 0.1}))
    ddae.save_pretrained(tmp_path / "ddae")
    names = tuple("0123456789")
    budget = {"images": 96, "total_batch_size": 32, "learning_rate": 1e-2}
    return NoiseClassifierConfig(str(tmp_path / "ddae"), "mid_block.resnets.1", names, **budget)


def test_it_starts_fresh_or_from_the_checkpoint_and_is_cut_after_the_block(classifier, tmp_path):
    saved = load_file(tmp_path / "ddae" / "model.safetensors")
    for pretrained in (False, True):
        model = build_noise_classifier(
            NoiseClassifierConfig(classifier.checkpoint, classifier.layer, ("a", "b"), pretrained)
        )
        assert model.config.id2label == {0: "a", 1: "b"} and list(model.ddae.feature_layers)[-1] == classifier.layer
        trained = {name: w for name, w in model.named_parameters() if name.startswith("ddae.")}
        assert trained.keys() < saved.keys()
        assert all(torch.equal(w, saved[name]) for name, w in trained.items()) is pretrained


def test_an_ldae_keeps_its_tokenizer_and_starts_as_the_identity(tmp_path):
    config = LDAEConfig.from_size("nano", image_size=16, patch_size=4, latent_dim=8)
    ldae = LDAEForPreTraining(config)
    with torch.no_grad():
        ldae.ldae.tokenizer.mean += 0.5
    ldae.save_pretrained(tmp_path)
    model = build_noise_classifier(NoiseClassifierConfig(str(tmp_path), 3, ("a", "b")))
    assert torch.equal(model.ldae.tokenizer.mean, ldae.ldae.tokenizer.mean)
    assert len(model.ldae.layers) == 3
    tokens = model.ldae(torch.rand(2, 3, 16, 16), output_hidden_states=True).hidden_states
    assert torch.equal(tokens[0], tokens[3])


def test_folding_the_batch_norm_changes_no_logit():
    torch.manual_seed(0)
    plain = DDAEForImageClassification(DDAEConfig(denoiser_config=UNET, num_labels=3))
    model = NormalizedClassifier(plain).eval()
    model.norm.running_mean.normal_()
    model.norm.running_var.uniform_(0.5, 2)
    pixels, noise, timesteps = torch.rand(4, 3, 16, 16), torch.randn(4, 3, 16, 16), torch.tensor([1, 30, 400, 999])
    with torch.no_grad():
        expected = model(pixels, timesteps, noise)
        plain.load_state_dict(fold(model.state_dict()))
        torch.testing.assert_close(plain(pixels, timesteps=timesteps, noise=noise).logits, expected)


def test_a_stopped_run_ends_as_a_whole_one_and_a_finished_one_stays(classifier, tmp_path, fresh_accelerator):
    whole = train_noise_classifier(classifier, DIGITS, tmp_path / "whole")
    model = AutoModelForImageClassification.from_pretrained(whole)
    assert isinstance(model, DDAEForImageClassification) and model.config.id2label[9] == "9"

    recipe = noise_classifier_recipe(classifier, DIGITS, tmp_path / "parts")
    stop_after(NoiseClassifierTask(recipe, classifier), 2)
    resumed = train_noise_classifier(classifier, DIGITS, tmp_path / "parts")
    ours, theirs = load_file(resumed / "model.safetensors"), load_file(whole / "model.safetensors")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)

    before = (whole / "metrics.jsonl").stat().st_mtime_ns
    train_noise_classifier(classifier, DIGITS, whole)
    assert (whole / "metrics.jsonl").stat().st_mtime_ns == before
    other = NoiseClassifierConfig(**{**vars(classifier), "learning_rate": 0.1})
    with pytest.raises(RunError, match="holds a run of another recipe"):
        train_noise_classifier(other, DIGITS, whole)
    fine_tuned = replace(classifier, pretrained=True)
    with pytest.raises(RunError, match="holds another classifier"):
        train_noise_classifier(fine_tuned, DIGITS, whole)
    (whole / SETTINGS_FILE).unlink()  # as in an earlier version, which was right with a test split
    train_noise_classifier(classifier, DIGITS, whole)


def write_images(folder):
    """Write 40 images of two classes, without a test split."""
    pixels = torch.randint(0, 255, (40, 16, 16), dtype=torch.uint8).numpy()
    for index, image in enumerate(pixels):
        (folder / str(index % 2)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / str(index % 2) / f"{index}.png")
    return folder


def test_it_trains_on_no_image_that_it_is_scored_on(classifier, tmp_path):
    data = DataConfig(str(write_images(tmp_path / "images")), num_workers=0)
    task = NoiseClassifierTask(noise_classifier_recipe(classifier, data, None), classifier)
    source, scored = task.open_source(), open_probe_images(data)[1]
    assert (source.num_examples, scored.num_examples) == (36, 4)


def test_a_classifier_of_an_earlier_version_is_refused_where_it_was_trained_on_scored_images(classifier, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.safetensors").write_bytes(b"")  # without a file of settings
    images = write_images(tmp_path / "images")
    with pytest.raises(RunError, match="an earlier version, which was also trained on the images that it is scored"):
        train_noise_classifier(classifier, DataConfig(str(images), num_workers=0), tmp_path / "out")
