"""The discriminator of patches at every size of image, its loss, and the adaptive weight."""

import pytest
import torch

from ldae.tokenizers.discriminator import PatchDiscriminator, adaptive_weight, hinge_loss


@pytest.mark.parametrize(
    ("image_size", "strided", "side"), [(8, 1, 2), (16, 2, 2), (24, 2, 4), (32, 3, 2), (64, 3, 6), (256, 3, 30)]
)
def test_the_map_of_scores_has_at_least_two_by_two(image_size: int, strided: int, side: int) -> None:
    model = PatchDiscriminator(3, image_size, width=4)
    assert model(torch.zeros(1, 3, image_size, image_size)).shape == (1, 1, side, side)
    convolutions = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)]
    assert [module.stride[0] for module in convolutions] == [2] * strided + [1, 1]
    assert [module.out_channels for module in convolutions] == [4 * 2**i for i in range(strided + 1)] + [1]


def test_the_default_is_the_customary_size() -> None:
    # The 70 x 70 PatchGAN has 2.77 million parameters.
    assert sum(p.numel() for p in PatchDiscriminator(3, 256).parameters()) == pytest.approx(2.77e6, rel=0.01)


def test_an_images_scores_depend_on_it_alone() -> None:
    torch.manual_seed(0)
    model, images = PatchDiscriminator(3, 16, width=8).train(), torch.randn(4, 3, 16, 16)
    torch.testing.assert_close(model(images)[:1], model(images[:1]))
    assert not list(model.buffers())


def test_images_that_are_too_small_are_refused() -> None:
    with pytest.raises(ValueError, match="image_size=7 must be at least 8"):
        PatchDiscriminator(3, image_size=7)


def test_the_hinge_loss_is_that_of_its_formula() -> None:
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0, 1.0])
    assert hinge_loss(real, fake).item() == pytest.approx(((0 + 0.5 + 2) / 3 + (0 + 1 + 2) / 3) / 2)
    assert hinge_loss(real.bfloat16(), fake.bfloat16()).dtype == torch.float32


def test_the_adaptive_weight_is_the_ratio_of_the_gradients() -> None:
    weight = torch.zeros(2, requires_grad=True)
    steep, flat = torch.tensor([3.0, 4.0]), torch.tensor([0.0, 2.0])
    found = adaptive_weight((steep * weight).sum(), (flat * weight).sum(), weight)
    assert found.item() == pytest.approx(5 / (2 + 1e-4))
    assert not found.requires_grad and weight.grad is None
    assert adaptive_weight((steep * weight).sum(), (0 * weight).sum(), weight) == 1e4  # of 5 / 1e-4


def test_the_graphs_of_both_losses_are_kept() -> None:
    weight = torch.ones(2, requires_grad=True)
    first, second = weight.square().sum(), weight.exp().sum()
    adaptive_weight(first, second, weight)
    (first + second).backward()
    torch.testing.assert_close(weight.grad, 2 * weight.detach() + weight.detach().exp())
