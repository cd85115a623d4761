"""EDM's augmentation: what is labelled is what was done, and nothing else was."""

import math

import pytest
import torch

from ldae.data import augment_geometry
from ldae.data.geometry import resample


def make_pixels(count: int = 12, size: int = 16) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def moved(pixels: torch.Tensor, **amounts: float) -> torch.Tensor:
    """Resampled by the same amounts."""
    names = ("log2_scale", "angle", "log2_stretch", "axis")
    values = [torch.full((len(pixels),), amounts.get(name, 0.0)) for name in names]
    shift = torch.tensor([[amounts.get("right", 0.0), amounts.get("down", 0.0)]]).expand(len(pixels), -1)
    return resample(pixels, *values, shift)


def test_at_a_probability_of_zero_nothing_is_done():
    pixels = make_pixels()
    found, labels = augment_geometry(pixels, torch.arange(12), 0, probability=0.0)
    assert torch.equal(found, pixels) and labels.shape == (12, 9) and not labels.any()


def test_labels_say_what_was_done_and_flips_are_exact():
    pixels = make_pixels(400)
    found, labels = augment_geometry(pixels, torch.arange(400), 0, probability=0.12)
    only_flipped = ~labels[:, 2:].any(dim=1)
    x, y = labels[:, 0] == 1, labels[:, 1] == 1
    flips = {(False, False): pixels, (True, False): pixels.flip(-1), (False, True): pixels.flip(-2)}
    flips[True, True] = pixels.flip(-1, -2)
    for (mirrored, upturned), expected in flips.items():
        chosen = only_flipped & (x == mirrored) & (y == upturned)
        assert chosen.any(), "too few images to see each case"
        assert torch.equal(found[chosen], expected[chosen])
    assert all(not torch.allclose(found[i], pixels[i]) for i in torch.where(~only_flipped)[0])


def test_each_comes_to_its_share_of_the_images():
    _, labels = augment_geometry(torch.zeros(20_000, 1, 2, 2), torch.arange(20_000), 5, probability=0.12)
    groups = {"scale": [2], "rotation": [3, 4], "anisotropy": [5, 6], "translation": [7, 8]}
    done = {name: labels[:, columns].any(dim=1) for name, columns in groups.items()}
    for name, share in done.items():
        assert share.float().mean().item() == pytest.approx(0.12, abs=0.01), name
    assert labels[:, 0].mean().item() == pytest.approx(0.5, abs=0.02)
    assert labels[:, 1].mean().item() == pytest.approx(0.06, abs=0.01)
    both = (done["scale"] & done["rotation"]).float().mean().item()
    assert both == pytest.approx(0.12**2, abs=0.005), "each for itself"
    for column in (2, 7, 8):
        values = labels[done["scale" if column == 2 else "translation"], column]
        assert abs(values.mean()) < 0.1 and values.std().item() == pytest.approx(1, abs=0.1)
    turned = labels[done["rotation"]]
    torch.testing.assert_close((turned[:, 3] + 1) ** 2 + turned[:, 4] ** 2, torch.ones(len(turned)))
    along = labels[done["anisotropy"], 6] == 0
    assert along.float().mean().item() == pytest.approx(0.5, abs=0.05), "half of the axes are horizontal"


@pytest.mark.parametrize("split", [1, 5])
def test_it_depends_on_the_position_and_the_seed_alone(split):
    pixels, positions = make_pixels(), torch.arange(100, 112)
    whole = augment_geometry(pixels, positions, 3, probability=0.5)
    parts = [
        augment_geometry(p, n, 3, probability=0.5)
        for p, n in zip(pixels.split(split), positions.split(split), strict=True)
    ]
    for index in range(2):
        torch.testing.assert_close(torch.cat([part[index] for part in parts]), whole[index], rtol=0, atol=1e-5)
    assert not torch.equal(augment_geometry(pixels, positions, 4, probability=0.5)[1], whole[1])


def test_a_whole_step_is_exact():
    pixels = make_pixels(3)
    close = {"rtol": 0, "atol": 1e-4}
    torch.testing.assert_close(moved(pixels), pixels, **close)
    torch.testing.assert_close(moved(pixels, angle=math.pi / 2), pixels.rot90(dims=(2, 3)), **close)
    shifted = moved(pixels, right=2 / 16, down=-1 / 16)
    torch.testing.assert_close(shifted[:, :, :-1, 2:], pixels[:, :, 1:, :-2], **close)
    torch.testing.assert_close(shifted[:, :, :-1, 1], pixels[:, :, 1:, 0], **close)  # the border is reflected


def test_scales_enlarge_and_stretch_along_the_axis():
    rows = torch.linspace(-0.5, 0.5, 16)[None, None, :, None].expand(2, 1, 16, 16)
    inner = (..., slice(5, 11), slice(5, 11))
    close = {"rtol": 0, "atol": 0.005}  # torch's bicubic kernel gives a slope but nearly back
    torch.testing.assert_close(moved(rows, log2_scale=1.0)[inner], rows[inner] / 2, **close)
    torch.testing.assert_close(
        moved(rows, log2_stretch=1.0)[inner], rows[inner] * 2, **close
    )  # squeezed across the axis
    torch.testing.assert_close(moved(rows, log2_stretch=1.0, axis=math.pi / 2)[inner], rows[inner] / 2, **close)
    # after a quarter turn it is the columns that differ, and the horizontal stretch falls to them
    turned = moved(rows, log2_stretch=1.0, angle=math.pi / 2)
    torch.testing.assert_close(turned[inner], (rows.rot90(dims=(2, 3)) / 2)[inner], **close)
