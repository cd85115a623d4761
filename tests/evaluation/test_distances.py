"""FID and KID against their definitions, computed by scipy and numpy on the same features."""

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import nn

from ldae.data import Batch, iterate_once
from ldae.evaluation.distances import image_distances, kernel_distance, read_reference
from ldae.evaluation.extractor import FeatureExtractor


class MeanColours(FeatureExtractor):
    """Means over the cells of a 2 x 2 grid through a random linear map: few features, none of them constant."""

    def __init__(self, num_features: int = 6):
        torch.manual_seed(0)
        super().__init__("mean colours", nn.Linear(12, num_features), num_features)

    def extract(self, images: torch.Tensor) -> torch.Tensor:
        cells = nn.functional.adaptive_avg_pool2d(images.float() / 255, 2).flatten(1)  # (b, 12)
        return self.network(cells)


@pytest.fixture
def extractor():
    return MeanColours()


def draw_batches(count: int, seed: int, noise: float = 0.0, batch_size: int = 32) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    smooth = torch.rand(count, 3, 2, 2, generator=generator).repeat_interleave(8, 2).repeat_interleave(8, 3)
    images = smooth + noise * torch.randn(count, 3, 1, 1, generator=generator)
    images = (images.clamp(0, 1) * 255).round().to(torch.uint8)
    positions = torch.arange(count)
    parts = zip(images.split(batch_size), positions.split(batch_size), strict=True)
    return [Batch(part, numbers, None) for part, numbers in parts]


def features_of(extractor: FeatureExtractor, batches: list[Batch]) -> np.ndarray:
    return torch.cat([extractor(batch.images) for batch in batches]).double().numpy()


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """|mu_a - mu_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2))."""
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = scipy.linalg.sqrtm(cov_a @ cov_b)
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root.real))


def squared_mmd(a: np.ndarray, b: np.ndarray) -> float:
    """Unbiased in each of the two sets, with the kernel (x.y / F + 1)^3."""
    kernel = lambda x, y: (x @ y.T / x.shape[1] + 1) ** 3  # noqa: E731
    n = len(a)
    within = sum((k.sum() - np.trace(k)) / (n * (n - 1)) for k in (kernel(a, a), kernel(b, b)))
    return float(within - 2 * kernel(a, b).mean())


def test_both_are_their_definitions(extractor):
    one, other = draw_batches(200, 0), draw_batches(200, 1, noise=0.2)
    measured = image_distances(one, other, extractor)
    a, b = features_of(extractor, one), features_of(extractor, other)
    assert measured.fid == pytest.approx(frechet_distance(b, a), rel=1e-6)
    assert (measured.kid_subset_size, measured.num_generated, measured.num_reference) == (200, 200, 200)
    assert measured.kid == pytest.approx(squared_mmd(b, a), rel=1e-6)  # every subset is the whole
    assert measured.kid_std == pytest.approx(0, abs=1e-9)


def test_a_set_is_at_no_distance_from_itself_and_further_with_more_noise(extractor):
    clean = draw_batches(300, 0)
    itself = image_distances(clean, clean, extractor)
    assert itself.fid == pytest.approx(0, abs=1e-6)
    noisy = [image_distances(draw_batches(300, 0, noise), clean, extractor) for noise in (0.1, 0.3, 0.6)]
    assert 1e-4 < noisy[0].fid < noisy[1].fid < noisy[2].fid
    assert itself.kid < noisy[0].kid < noisy[1].kid < noisy[2].kid


def test_the_size_of_batches_changes_nothing(extractor):
    reference = draw_batches(100, 0)
    one, other = (image_distances(draw_batches(90, 1, 0.2, size), reference, extractor) for size in (90, 7))
    assert one.fid == pytest.approx(other.fid, rel=1e-5) and one.kid == pytest.approx(other.kid, rel=1e-5)


def test_kid_subsets_are_the_same_every_time_and_leave_the_global_state(extractor):
    a, b = (torch.from_numpy(features_of(extractor, draw_batches(120, seed))) for seed in (0, 1))
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again = (kernel_distance(a, b, subsets=20, subset_size=50) for _ in range(2))
    assert first == again and first[1] > 0 and first[2] == 50
    assert torch.equal(torch.rand(1), expected)


def test_fewer_images_than_features_still_give_a_number():
    extractor = MeanColours(num_features=64)
    measured = image_distances(draw_batches(10, 0), draw_batches(20, 1), extractor)
    assert np.isfinite(measured.fid) and np.isfinite(measured.kid)
    assert (measured.num_generated, measured.kid_subset_size) == (10, 10)


def test_a_reference_that_was_read_once_serves_several_sets(extractor):
    reference = draw_batches(100, 0)
    kept = read_reference(iter(reference), extractor)
    for seed in (1, 2):
        generated = draw_batches(90, seed, 0.2)
        assert image_distances(generated, kept, extractor) == image_distances(generated, reference, extractor)
    with pytest.raises(ValueError, match="read it with kid=True"):
        image_distances(reference, read_reference(reference, extractor, kid=False), extractor)


def test_only_what_is_asked_for_is_measured(extractor):
    one, other = draw_batches(20, 0), draw_batches(20, 1)
    assert image_distances(one, other, extractor, kid=False).kid is None
    alone = image_distances(one, other, extractor, fid=False)
    assert alone.fid is None and alone.kid == image_distances(one, other, extractor).kid
    with pytest.raises(ValueError, match="there is 1 generated image; FID and KID need 2 or more"):
        image_distances(draw_batches(1, 0), other, extractor)
    with pytest.raises(ValueError, match="there is 0 reference image"):
        image_distances(one, [], extractor)


def test_images_of_a_source_are_streamed(extractor, digits):
    seen = []

    def watched(source):
        for batch in iterate_once(source, image_size=16, batch_size=50, limit=200):
            seen.append(len(batch.images))
            yield batch

    train, test = digits
    near = image_distances(watched(test), watched(train), extractor)
    assert seen == [50] * 8
    assert 0 < near.fid < 0.05
