import math

import pytest
import torch
from transformers import ViTImageProcessorPil

from ldae.data import prepare_images
from ldae.data.augment import TRIALS, draw_boxes


def make_images(count=12, size=16):
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


CROP = {"image_size": 12, "random_resized_crop": True, "crop_scale": (0.2, 1.0), "horizontal_flip": True}


def test_without_crop_the_values_are_those_of_the_image_processor():
    images = make_images()
    processor = ViTImageProcessorPil(size={"height": 16, "width": 16}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    expected = processor(list(images), return_tensors="pt").pixel_values
    found = prepare_images(images, torch.arange(12), 0, image_size=16)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert found.min() >= -1 and found.max() <= 1


@pytest.mark.parametrize("split", [1, 5, 7])
def test_split_of_the_batch_changes_nothing(split):
    images, positions = make_images(), torch.arange(100, 112)
    whole = prepare_images(images, positions, 3, **CROP)
    parts = [prepare_images(i, p, 3, **CROP) for i, p in zip(images.split(split), positions.split(split), strict=True)]
    assert whole.shape == (12, 3, 12, 12)
    assert torch.equal(whole, torch.cat(parts))


def test_depends_on_the_seed_and_the_position():
    images, positions = make_images(), torch.arange(12)
    one = prepare_images(images, positions, 0, **CROP)
    assert not torch.equal(one, prepare_images(images, positions, 1, **CROP))
    assert not torch.equal(one, prepare_images(images, positions + 12, 0, **CROP))


def test_boxes_lie_inside_and_have_the_asked_area_and_ratio():
    uniform = torch.rand(20_000, 2 * TRIALS + 2, generator=torch.Generator().manual_seed(0))
    left, top, width, height = draw_boxes(uniform, 32, 32, (0.3, 0.9)).unbind(1)
    assert (left >= 0).all() and (top >= 0).all()
    assert (left + width <= 32 + 1e-4).all() and (top + height <= 32 + 1e-4).all()
    area = width * height / 32**2
    assert ((area > 0.3 - 1e-4) & (area < 0.9 + 1e-4)).all()
    ratio = (width / height).log()
    assert ratio.abs().max() <= math.log(4 / 3) + 1e-5 and abs(ratio.mean()) < 0.01
    assert area.min() < 0.31 and area.max() > 0.85


def test_a_box_that_never_fits_is_the_whole_image():
    uniform = torch.full((1, 2 * TRIALS + 2), 0.999)  # nearly all of the area, twice as wide as it may be
    assert draw_boxes(uniform, 16, 16, (1.0, 1.0)).tolist() == [[0, 0, 16, 16]]


def test_whole_image_as_a_box_changes_nothing_but_the_flip(monkeypatch):
    monkeypatch.setattr("ldae.data.augment.CROP_RATIO", (1.0, 1.0))
    images, positions = make_images(), torch.arange(12)
    options = {"image_size": 16, "horizontal_flip": True}
    flipped = prepare_images(images, positions, 0, **options)
    cropped = prepare_images(images, positions, 0, random_resized_crop=True, crop_scale=(1.0, 1.0), **options)
    torch.testing.assert_close(cropped, flipped, atol=1e-4, rtol=0)
    plain = prepare_images(images, positions, 0, image_size=16)
    is_flipped = torch.tensor([torch.equal(a, b.flip(-1)) for a, b in zip(flipped, plain, strict=True)])
    is_plain = torch.tensor([torch.equal(a, b) for a, b in zip(flipped, plain, strict=True)])
    assert (is_flipped ^ is_plain).all() and 2 <= is_flipped.sum() <= 10


def test_a_crop_is_a_linear_stretch():
    ramp = torch.arange(16, dtype=torch.uint8).mul(10).expand(4, 3, 16, 16)  # grows to the right
    found = prepare_images(ramp, torch.arange(4), 0, image_size=16, random_resized_crop=True, crop_scale=(0.3, 0.5))
    inner = found[..., 1:-1].diff(dim=-1)
    torch.testing.assert_close(inner, inner[..., :1].expand_as(inner), atol=1e-4, rtol=0)
    torch.testing.assert_close(found, found[..., :1, :].expand_as(found), atol=1e-5, rtol=0)


def test_larger_images_are_centre_cropped_and_smaller_refused():
    images = make_images(size=16)
    found = prepare_images(images, torch.arange(12), 0, image_size=12)
    assert torch.equal(found, prepare_images(images, torch.arange(12), 0, image_size=16)[..., 2:14, 2:14])
    with pytest.raises(ValueError, match=r"data\.decode_size"):
        prepare_images(images, torch.arange(12), 0, image_size=17)
    with pytest.raises(ValueError, match="square"):
        prepare_images(images[..., :8], torch.arange(12), 0, image_size=8)


def test_padded_crops_shift_images_and_let_black_in():
    images = torch.randint(1, 256, (40, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    positions = torch.arange(40)
    plain = prepare_images(images, positions, 0, image_size=12)
    shifted = prepare_images(images, positions, 0, image_size=12, crop_padding=2)
    padded = torch.nn.functional.pad(plain, [2] * 4, value=-1.0)
    found = set()
    for padded_image, image in zip(padded, shifted, strict=True):
        corners = [
            (y, x) for y in range(5) for x in range(5) if torch.equal(padded_image[:, y : y + 12, x : x + 12], image)
        ]
        assert len(corners) == 1
        found.update(corners)
    assert len(found) > 12 and {y for y, _ in found} == {x for _, x in found} == set(range(5))
    again = prepare_images(images[7:8], positions[7:8], 0, image_size=12, crop_padding=2)
    assert torch.equal(again[0], shifted[7])
    flipped = prepare_images(images, positions, 0, image_size=12, crop_padding=2, horizontal_flip=True)
    assert 10 < (flipped != shifted).any(dim=(1, 2, 3)).sum() < 30
    with pytest.raises(ValueError, match="crop_padding=2 and random_resized_crop exclude each other"):
        prepare_images(images, positions, 0, image_size=12, crop_padding=2, random_resized_crop=True)
