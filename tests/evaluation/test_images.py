import pytest
import torch
from datasets import Dataset

from ldae.data import DataConfig, iterate_once, open_images, prepare_images
from ldae.data.augment import RandomCrop
from ldae.evaluation import images as images_module
from ldae.evaluation.images import ImageSet, fixed_subset


def joined(batches, name):
    return torch.cat([getattr(batch, name) for batch in batches])


@pytest.mark.parametrize("kept_bytes", [2**30, 0])
def test_every_pass_gives_the_same_images(monkeypatch, kept_bytes, digits):
    monkeypatch.setattr(images_module, "KEPT_BYTES", kept_bytes)
    images = ImageSet(digits[1], image_size=16, batch_size=100)
    expected = joined(iterate_once(digits[1], image_size=16, batch_size=64), "images")
    for _ in range(3):
        assert torch.equal(joined(images.batches(), "images"), expected)


def test_images_that_fit_are_decoded_once(monkeypatch, digits):
    images = ImageSet(digits[1], image_size=16)
    first = joined(images.batches(), "images")
    monkeypatch.setattr(Dataset, "__getitem__", None)
    assert torch.equal(joined(images.batches(), "images"), first)


def test_an_unfinished_pass_keeps_nothing(digits):
    images = ImageSet(digits[1], image_size=16, batch_size=100)
    next(images.batches())
    assert len(joined(images.batches(), "images")) == 360


def test_a_mask_and_shifted_positions(digits):
    images = ImageSet(digits[1], image_size=16, batch_size=100)
    mask = torch.arange(360) % 3 == 0
    mask[100:200] = False  # a whole batch of nothing
    part = list(images.batches(mask, skip_positions=1000))
    assert torch.equal(joined(part, "positions"), torch.arange(360)[mask] + 1000)
    assert torch.equal(joined(part, "labels"), joined(images.batches(), "labels")[mask])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_random_crops_are_those_of_the_positions_of_a_pass(digits, num_workers):
    """Of square images they are the crops of decoded images, but for the rounding to 8 bits."""
    mask = torch.arange(360) % 2 == 0
    images = ImageSet(
        digits[1], image_size=16, batch_size=100, num_workers=num_workers, crop=RandomCrop(3, (0.2, 1.0))
    )
    cropped = list(images.batches(mask, skip_positions=1000))
    plain = list(ImageSet(digits[1], image_size=16).batches(mask, skip_positions=1000))
    assert torch.equal(joined(cropped, "positions"), joined(plain, "positions"))
    assert torch.equal(joined(cropped, "images"), joined(images.batches(mask, skip_positions=1000), "images"))
    assert not torch.equal(joined(cropped, "images"), joined(images.batches(mask, skip_positions=2000), "images"))
    options = {"image_size": 16, "random_resized_crop": True, "crop_scale": (0.2, 1.0)}
    expected = torch.cat([prepare_images(batch.images, batch.positions, 3, **options) for batch in plain])
    found = joined(cropped, "images") / 127.5 - 1
    torch.testing.assert_close(found, expected, atol=1.1 / 127.5, rtol=0)


@pytest.mark.parametrize("streaming", [False, True])
def test_fixed_subset(streaming):
    source = open_images(DataConfig("digits", streaming=streaming))

    def rows(seed):
        batches = list(iterate_once(fixed_subset(source, 50, seed), image_size=16, batch_size=64))
        return joined(batches, "images")

    first = rows(0)
    assert len(first) == 50
    assert len(first.unique(dim=0)) > 45  # drawn without replacement
    assert torch.equal(first, rows(0))
    assert not torch.equal(first, rows(1))


def test_a_small_source_is_taken_whole(digits):
    assert fixed_subset(digits[1], 360, 0) is digits[1]
