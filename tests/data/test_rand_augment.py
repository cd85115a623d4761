"""RandAugment: each operation against Pillow's, and what the draws depend on."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from ldae.data.rand_augment import OPERATIONS, rand_augment


def make_images(count: int = 16, size: int = 16) -> torch.Tensor:
    """In [0, 1], in steps of 1 / 255 and within a narrow range, so that stretching it does something."""
    return torch.randint(40, 200, (count, 3, size, size), generator=torch.Generator().manual_seed(0)) / 255


def apply(name: str, images: torch.Tensor, strength: float, sign: float = 1.0) -> torch.Tensor:
    full = torch.full((len(images), 1, 1, 1), 1.0)
    return OPERATIONS[name](images, strength * full, sign * full).clamp(0, 1)


@pytest.mark.parametrize(
    ("name", "strength", "sign", "pillow"),
    [
        ("auto_contrast", 0.9, 1, ImageOps.autocontrast),
        ("equalize", 0.9, 1, ImageOps.equalize),
        ("invert", 0.9, 1, ImageOps.invert),
        ("posterize", 0.5, 1, lambda image: ImageOps.posterize(image, 2)),
        ("solarize", 0.4, 1, lambda image: ImageOps.solarize(image, 153)),
        ("color", 0.5, -1, lambda image: ImageEnhance.Color(image).enhance(0.55)),
        ("contrast", 0.5, 1, lambda image: ImageEnhance.Contrast(image).enhance(1.45)),
        ("brightness", 1.0, -1, lambda image: ImageEnhance.Brightness(image).enhance(0.1)),
        ("sharpness", 0.5, 1, lambda image: ImageEnhance.Sharpness(image).enhance(1.45)),
        ("rotate", 1.0, 1, lambda image: image.rotate(-30, Image.Resampling.BILINEAR, fillcolor=(128, 128, 128))),
    ],
)
def test_an_operation_gives_what_pillow_does(name, strength, sign, pillow):
    images = make_images(2)
    arrays = [(image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8) for image in images]
    expected = np.stack([np.asarray(pillow(Image.fromarray(array))) for array in arrays])
    found = apply(name, images, strength, sign).permute(0, 2, 3, 1).numpy() * 255
    difference = np.abs(found - expected)
    if name == "rotate":  # Pillow does not blend with the fill at the edges
        difference = difference[:, 5:-5, 5:-5]
    assert difference.max() <= 2  # Pillow rounds in between


def test_shifts_and_shears_fill_with_grey():
    images = make_images(2, size=20)
    moved = apply("translate_x", images, 1.0)  # by 9 of 20 pixels
    torch.testing.assert_close(moved[..., :11], images[..., 9:], atol=1e-5, rtol=0)
    assert torch.allclose(moved[..., 11:], torch.tensor(0.5))
    torch.testing.assert_close(apply("translate_y", images.mT, 1.0), moved.mT, atol=1e-5, rtol=0)
    torch.testing.assert_close(apply("shear_y", images.mT, 0.7), apply("shear_x", images, 0.7).mT, atol=1e-5, rtol=0)
    brighter = apply("solarize_add", torch.full((1, 3, 4, 4), 0.2), 1.0)
    torch.testing.assert_close(brighter, torch.full_like(brighter, 0.2 + 110 / 255))


@pytest.mark.parametrize("channels", [1, 3])
def test_how_the_batch_is_divided_changes_nothing(channels):
    images, positions = make_images()[:, :channels] * 2 - 1, torch.arange(100, 116)
    whole = rand_augment(images, positions, 3)
    parts = [rand_augment(i, p, 3) for i, p in zip(images.split(5), positions.split(5), strict=True)]
    assert torch.equal(whole, torch.cat(parts))
    assert whole.isfinite().all() and whole.min() >= -1 and whole.max() <= 1
    assert not torch.equal(whole, rand_augment(images, positions, 4))
    assert not torch.equal(whole, rand_augment(images, positions + 16, 3))


def test_a_quarter_of_the_images_stays_and_every_operation_occurs(monkeypatch):
    seen: dict[str, int] = {}

    def count(name):
        def operation(x, strength, sign):
            seen[name] = seen.get(name, 0) + len(x)
            assert (strength > 0.65).all() and (strength <= 1).all()
            return x * 0 + 0.25

        return operation

    for name in OPERATIONS:
        monkeypatch.setitem(OPERATIONS, name, count(name))
    after = rand_augment(torch.ones(4000, 1, 1, 1), torch.arange(4000), 0)
    assert (after == 1).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert set(seen) == set(OPERATIONS) and min(seen.values()) > 200  # 267 in the mean
