"""Feature extractors by name: what they see, what they give, and what is refused."""

import shutil

import pytest
import torch
from transformers import (
    AutoImageProcessor,
    ResNetConfig,
    ResNetForImageClassification,
    ResNetModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessorPil,
)

from ldae import LDAEConfig, LDAEForImageClassification
from ldae.data.image_processor import save_image_processor
from ldae.evaluation.extractor import load_extractor


RESNET = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3)
SIZES = LDAEConfig.from_size("nano", image_size=16, patch_size=4, latent_dim=8)


@pytest.fixture
def resnet(tmp_path):
    """A classifier, whose features come before its head."""
    torch.manual_seed(0)
    ResNetForImageClassification(RESNET).save_pretrained(tmp_path / "resnet")
    save_image_processor(tmp_path / "resnet", SIZES)
    return tmp_path / "resnet"


def draw(count: int = 5, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, channels, 16, 16), dtype=torch.uint8, generator=generator)


def test_features_are_the_pooled_ones_of_processed_images(resnet, capfd):
    extractor = load_extractor(resnet)
    assert (extractor.name, extractor.num_features) == ("resnet (ResNetModel)", 16)
    assert "UNEXPECTED" not in capfd.readouterr().err
    images = draw()
    pixels = AutoImageProcessor.from_pretrained(resnet)(list(images.numpy()), return_tensors="pt").pixel_values
    with torch.no_grad():
        expected = ResNetModel.from_pretrained(resnet)(pixels).pooler_output.flatten(1)
    torch.testing.assert_close(extractor(images), expected)
    assert extractor(images).dtype == torch.float32


def test_folders_of_one_name_are_told_apart_by_their_weights(resnet, tmp_path):
    torch.manual_seed(1)
    ResNetForImageClassification(RESNET).save_pretrained(tmp_path / "other" / "resnet")
    save_image_processor(tmp_path / "other" / "resnet", SIZES)
    copied = shutil.copytree(resnet, tmp_path / "copy" / "resnet")
    ours, others, copies = (load_extractor(folder) for folder in (resnet, tmp_path / "other" / "resnet", copied))
    assert ours.name == others.name and ours.protocol != others.protocol
    assert ours.protocol == copies.protocol


def test_it_stays_frozen_in_evaluation_mode_and_in_float32(resnet):
    extractor = load_extractor(resnet).train()
    assert not any(module.training for module in extractor.modules())
    assert not any(parameter.requires_grad for parameter in extractor.parameters())
    images = draw()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(extractor(images), load_extractor(resnet)(images))


def test_grey_images_are_shown_in_three_channels(resnet):
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(resnet)  # which knows of three channels
    extractor, grey = load_extractor(resnet), draw(channels=1)
    torch.testing.assert_close(extractor(grey), extractor(grey.expand(-1, 3, -1, -1)))


def test_a_pooling_layer_that_was_never_trained_is_not_used(tmp_path):
    config = ViTConfig(
        image_size=16, patch_size=4, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    model = ViTForImageClassification(config)
    model.save_pretrained(tmp_path)
    save_image_processor(tmp_path, SIZES)
    images = draw()
    first, again = (load_extractor(tmp_path)(images) for _ in range(2))
    assert torch.equal(first, again)
    with torch.no_grad():
        tokens = model.vit(images.float() / 127.5 - 1).last_hidden_state
    torch.testing.assert_close(first, tokens.mean(dim=1))


def test_an_ldae_is_an_extractor_too(checkpoint):
    extractor = load_extractor(checkpoint)
    assert (extractor.name, extractor.num_features) == ("run (LDAEModel)", 32)
    assert extractor(draw()).std(dim=0).min() > 0


def test_what_is_not_at_hand_is_said(tmp_path, resnet):
    with pytest.raises(
        ValueError, match=r"extractor='inception' is not at hand: .* Or name another extractor: a folder"
    ):
        load_extractor("inception")
    with pytest.raises(ValueError, match=r"extractor='.*nowhere' does not exist"):
        load_extractor(tmp_path / "nowhere")
    (resnet / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_extractor(resnet)


def test_a_checkpoint_without_its_network_is_refused(tmp_path):
    LDAEForImageClassification(SIZES).save_pretrained(tmp_path)
    save_image_processor(tmp_path, SIZES)
    with pytest.raises(ValueError, match=r"lacks \d+ weights, such as .*, which would be random"):
        _grow_and_load(tmp_path)


def _grow_and_load(folder) -> None:
    """A configuration of more blocks than there are weights for."""
    config = LDAEConfig.from_pretrained(folder)
    LDAEConfig.from_dict({**config.to_dict(), "num_hidden_layers": 4}).save_pretrained(folder)
    load_extractor(folder)
