"""MixUp and CutMix: targets follow the pixels, the draws follow the positions."""

import pytest
import torch

from ldae.data.mixing import mix_examples


def pair_images(count: int = 8, size: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    """Neighbours of 0 and 1 everywhere: the mean of a mixed image is the share of the second."""
    labels = torch.arange(count) % 2
    return labels.float().view(-1, 1, 1, 1).expand(count, 3, size, size), labels


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.8, 0), (0, 1.0), (0.8, 1.0)])
def test_targets_are_the_shares_of_the_pixels(mixup, cutmix):
    images, labels = pair_images(40)
    mixed, targets = mix_examples(
        images, labels, torch.arange(40), 0, num_classes=2, mixup=mixup, cutmix=cutmix, label_smoothing=0.0
    )
    torch.testing.assert_close(mixed.mean((1, 2, 3)), targets[:, 1])
    torch.testing.assert_close(targets.sum(1), torch.ones(40))
    pasted = ((mixed == 0) | (mixed == 1)).all(dim=3).all(dim=2).all(dim=1)
    assert pasted.any() == bool(cutmix) and (~pasted).any() == bool(mixup)
    torch.testing.assert_close(targets[::2], targets[1::2].flip(1))  # a pair gives each other the same share


def test_lambda_is_of_the_beta_distribution():
    images, labels = pair_images(8000, size=1)
    for a in (0.3, 1.0, 2.0):
        mixed, _ = mix_examples(images, labels, torch.arange(8000), 0, num_classes=2, mixup=a, cutmix=0)
        lam = 1 - mixed[::2, 0, 0, 0]
        assert lam.mean().item() == pytest.approx(0.5, abs=0.02)
        assert lam.var().item() == pytest.approx(1 / (4 * (2 * a + 1)), abs=0.01)


def test_how_the_batch_is_divided_changes_nothing():
    images = torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    labels, positions = torch.arange(12) % 5, torch.arange(100, 112)

    def mix(part, seed=3, shift=0):
        return mix_examples(images[part], labels[part], positions[part] + shift, seed, num_classes=5)

    whole = mix(slice(None))
    parts = [mix(slice(0, 4)), mix(slice(4, 6)), mix(slice(6, 12))]
    for index in range(2):
        assert torch.equal(whole[index], torch.cat([part[index] for part in parts]))
    assert not torch.equal(whole[0], mix(slice(None), seed=4)[0])
    assert not torch.equal(whole[0], mix(slice(None), shift=12)[0])


def test_off_it_only_smooths_the_labels():
    images, labels = pair_images(3)
    same, targets = mix_examples(images, labels, torch.arange(3), 0, num_classes=4, mixup=0, cutmix=0)
    assert torch.equal(same, images)
    torch.testing.assert_close(targets[0], torch.tensor([0.925, 0.025, 0.025, 0.025]))


@pytest.mark.parametrize("positions", [torch.arange(3), torch.arange(1, 5), torch.tensor([0, 2, 4, 6])])
def test_positions_that_are_no_pairs_are_refused(positions):
    images, labels = pair_images(len(positions))
    with pytest.raises(ValueError, match="must be pairs"):
        mix_examples(images, labels, positions, 0, num_classes=2)
