import numpy as np
import pytest
import torch

from ldae.reports.image_grids import GAP, LEAST_SIDE, sample_grid


def tile(picture, row, column, side, margin=GAP):
    top, left = GAP + row * (side + GAP), margin + column * (side + GAP)
    return np.asarray(picture)[top : top + side, left : left + side]


def test_every_image_is_drawn_whole_and_enlarged_by_a_whole_factor():
    images = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
    picture = sample_grid(images)
    assert picture.size == (GAP + 3 * (LEAST_SIDE + GAP), GAP + 2 * (LEAST_SIDE + GAP))
    for i, image in enumerate(images):
        shown = tile(picture, i // 3, i % 3, LEAST_SIDE)
        assert np.array_equal(shown[::4, ::4], image.permute(1, 2, 0).numpy())
        assert np.array_equal(shown[3::4, 3::4], image.permute(1, 2, 0).numpy())
    assert (tile(picture, 1, 2, LEAST_SIDE) == 255).all()


def test_large_and_grey_images_keep_their_size():
    images = torch.randint(0, 256, (2, 1, 100, 100), dtype=torch.uint8)
    picture = sample_grid(images, columns=1)
    assert np.array_equal(tile(picture, 1, 0, 100)[..., 1], images[1, 0].numpy())


def test_each_class_has_its_row_with_its_number():
    images = torch.arange(5, dtype=torch.uint8).reshape(5, 1, 1, 1).expand(5, 3, 64, 64)
    picture = sample_grid(images, torch.tensor([7, 12, 7, 12, 7]))
    margin = picture.size[0] - 3 * (64 + GAP)
    assert margin > GAP
    firsts = [[tile(picture, row, column, 64, margin)[0, 0, 0] for column in range(3)] for row in range(2)]
    assert firsts == [[0, 2, 4], [1, 3, 255]]
    written = np.asarray(picture)[:, : margin - 1]
    assert (written[:68] < 200).any() and (written[68:] < 200).any()
    with pytest.raises(ValueError, match="no images to draw"):
        sample_grid(images[:0])


def test_rows_may_have_names():
    images = torch.zeros(6, 3, 64, 64, dtype=torch.uint8)
    picture = sample_grid(images, columns=3, row_names=["DDIM 50", "ancestral 1000"])
    margin = picture.size[0] - 3 * (64 + GAP)
    assert picture.size[1] == GAP + 2 * (64 + GAP) and margin > 60
    assert (np.asarray(picture)[:68, : margin - 1] < 200).any()
