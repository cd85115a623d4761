"""The perceptual loss: its formula, its pixels, and a network that is never trained nor saved."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoImageProcessor, AutoModel, ViTConfig, ViTImageProcessor, ViTModel

from ldae.tokenizers.perceptual import PerceptualLoss

from .small_backbone import save_backbone


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_backbone(tmp_path_factory.mktemp("backbone"))


def draw_images(count: int = 2, channels: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.rand(count, channels, 16, 16, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_it_is_the_squared_distance_of_unit_features(folder: Path) -> None:
    first, second = draw_images(seed=0), draw_images(seed=1)
    backbone = AutoModel.from_pretrained(folder).eval()
    mean, std = torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1), torch.tensor([0.2, 0.3, 0.25]).view(3, 1, 1)
    states = [
        backbone(((images + 1) / 2 - mean) / std, output_hidden_states=True).hidden_states
        for images in (first, second)
    ]
    assert len(states[0]) == 3  # the stem and two stages
    expected = 0.0
    for a, b in zip(*states, strict=True):
        a, b = (x / (x.norm(dim=1, keepdim=True) + 1e-10) for x in (a, b))
        expected += (a - b).square().sum(dim=1).mean(dim=(1, 2)).mean() / 3
    found = PerceptualLoss(folder)(first, second)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)
    assert 0.01 < found.item() < 2


def test_equal_images_are_at_distance_zero_and_others_are_not(folder: Path) -> None:
    loss, images = PerceptualLoss(folder), draw_images()
    assert loss(images, images) == 0
    near, far = (loss(images + width * draw_images(seed=1), images) for width in (0.1, 1.0))
    assert 0 < near < far


@pytest.mark.parametrize(
    "settings", [{}, {"do_normalize": False}, {"do_rescale": False}, {"rescale_factor": 1 / 127.5}], ids=str
)
def test_pixels_are_those_of_the_image_processor(settings: dict, tmp_path: Path) -> None:
    loss = PerceptualLoss(save_backbone(tmp_path, **settings))
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    taken = images.float() / 255 if settings.get("do_rescale") is False else images  # then they come in [0, 1]
    expected = AutoImageProcessor.from_pretrained(tmp_path)(list(taken.numpy()), return_tensors="pt").pixel_values
    found = (images / 127.5 - 1) * loss.scale + loss.shift
    torch.testing.assert_close(found, expected.float(), atol=1e-5, rtol=1e-5)


def test_the_network_is_frozen_hidden_and_in_evaluation_mode(folder: Path) -> None:
    holder = nn.ModuleDict({"perceptual": PerceptualLoss(folder), "other": nn.Linear(2, 2)})
    loss, images = holder["perceptual"], draw_images()
    before = loss(images, draw_images(seed=1))
    assert set(holder.state_dict()) == {"other.weight", "other.bias"}
    assert len(list(holder.parameters())) == 2
    holder.load_state_dict(holder.state_dict(), strict=True)
    holder.train()
    assert not any(module.training for module in loss.backbone.modules())
    assert not any(parameter.requires_grad for parameter in loss.backbone.parameters())
    assert torch.equal(loss(images, draw_images(seed=1)), before)  # no batch statistics were used, none were updated
    holder.to(torch.float64)
    assert {parameter.dtype for parameter in loss.backbone.parameters()} == {torch.float64}
    torch.testing.assert_close(loss(images.double(), draw_images(seed=1).double()), before, rtol=1e-4, atol=0)
    holder.to("meta")
    assert {parameter.device.type for parameter in loss.backbone.parameters()} == {"meta"}


def test_gradients_reach_the_reconstruction_alone(folder: Path) -> None:
    loss = PerceptualLoss(folder)
    reconstruction, pixels = draw_images().requires_grad_(), draw_images(seed=1).requires_grad_()
    loss(reconstruction, pixels).backward()
    assert reconstruction.grad is not None and reconstruction.grad.abs().sum() > 0
    assert reconstruction.grad.isfinite().all()
    assert pixels.grad is None
    assert all(parameter.grad is None for parameter in loss.backbone.parameters())


def test_features_of_zeros_have_a_finite_gradient(folder: Path) -> None:
    loss = PerceptualLoss(folder)
    with torch.no_grad():
        for parameter in loss.backbone.parameters():
            parameter.zero_()
    images = draw_images().requires_grad_()
    loss(images, draw_images(seed=1)).backward()
    assert images.grad is not None and images.grad.isfinite().all()


def test_a_transformer_gives_tokens(tmp_path: Path) -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    ViTModel(ViTConfig(image_size=16, patch_size=8, **sizes)).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    loss, images = PerceptualLoss(tmp_path), draw_images()
    assert loss(images, images) == 0 and 0 < loss(draw_images(seed=1), images) < 4


def test_grey_images_are_shown_in_three_channels(folder: Path) -> None:
    loss, first, second = PerceptualLoss(folder), draw_images(channels=1), draw_images(channels=1, seed=1)
    three = loss(first.expand(-1, 3, -1, -1), second.expand(-1, 3, -1, -1))
    torch.testing.assert_close(loss(first, second), three)
    with pytest.raises(ValueError, match="takes 3 channels, but the images have 4"):
        loss(draw_images(channels=4), draw_images(channels=4))


def test_a_missing_network_is_named(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ValueError, match=r"perceptual_model='.*nothing' does not exist; give .* a Hub id"):
        PerceptualLoss(tmp_path / "nothing")
    AutoModel.from_pretrained(folder).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"(?s)cannot be loaded: .*preprocessor_config.json"):
        PerceptualLoss(tmp_path)
