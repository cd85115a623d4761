import numpy as np
from sklearn.datasets import load_digits

from ldae.data import DataConfig, iterate_once, open_images


def test_digits_are_scikit_learns_images_enlarged_twice():
    bunch = load_digits()
    batches = {
        split: next(iterate_once(open_images(DataConfig("digits"), split), image_size=16, batch_size=2000))
        for split in ("train", "test")
    }
    assert len(batches["train"].images) == 1437 and len(batches["test"].images) == 360
    images = np.concatenate([batches[split].images.numpy() for split in ("train", "test")])  # (1797, 3, 16, 16)
    labels = np.concatenate([batches[split].labels.numpy() for split in ("train", "test")])
    np.testing.assert_array_equal(labels, bunch.target)
    assert (images == images[:, :1]).all()  # grey in three channels
    averaged = images[:, 0].reshape(-1, 8, 2, 8, 2).astype(float).mean(axis=(2, 4))  # back to 8x8
    original = bunch.images * 255 / 16
    assert np.abs(averaged - original).mean() < 0.05 * 255  # a bicubic enlargement sharpens a little
    assert np.corrcoef(averaged.ravel(), original.ravel())[0, 1] > 0.99
