"""Counter-based random numbers: distributed as they should be, and functions of seed, stream and position alone."""

import math

import pytest
import torch

from ldae.models.randomness_ldae import (
    AUGMENTATION,
    CLASS_DROPOUT,
    NOISE,
    TIMESTEPS,
    keyed_normal,
    keyed_uniform,
)


DRAWS = (keyed_uniform, keyed_normal)
ROWS, COLUMNS = 2000, 500
COUNT = ROWS * COLUMNS


@pytest.fixture(scope="module")
def uniform():
    return keyed_uniform(0, NOISE, torch.arange(ROWS), COLUMNS).double()


@pytest.fixture(scope="module")
def normal():
    return keyed_normal(0, NOISE, torch.arange(ROWS), COLUMNS).double()


def standardized(x: torch.Tensor) -> torch.Tensor:
    return (x - x.mean()) / x.std()


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    """In standard errors: about standard normal where a and b are independent."""
    return (standardized(a) * standardized(b)).mean().item() * math.sqrt(a.numel())


def chi_square(counts: torch.Tensor) -> float:
    """Against equal counts, in standard deviations from its mean."""
    expected = counts.sum() / len(counts)
    statistic = ((counts - expected) ** 2 / expected).sum().item()
    degrees = len(counts) - 1
    return (statistic - degrees) / math.sqrt(2 * degrees)


# The limits are 4.5 standard errors: with fixed seeds a test passes or fails for good.


def test_uniform_moments_and_range(uniform):
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert uniform.mean().item() == pytest.approx(1 / 2, abs=4.5 * math.sqrt(1 / 12 / COUNT))
    assert uniform.var().item() == pytest.approx(1 / 12, abs=4.5 * math.sqrt(1 / 180 / COUNT))


@pytest.mark.parametrize("bins", [2, 10, 1000])
def test_uniform_fills_all_bins_alike(uniform, bins):
    counts = torch.bincount((uniform.flatten() * bins).long(), minlength=bins).double()
    assert len(counts) == bins
    assert abs(chi_square(counts)) < 4.5


@pytest.mark.parametrize("column", [0, 1, 63])
def test_each_column_is_uniform_over_positions(column):
    u = keyed_uniform(7, TIMESTEPS, torch.arange(20000), column + 1)[:, column]
    assert abs(chi_square(torch.bincount((u * 100).long(), minlength=100).double())) < 4.5


def test_pairs_of_neighbours_fill_the_square_alike(uniform):
    for a, b in ((uniform[:, :-1], uniform[:, 1:]), (uniform[:-1], uniform[1:])):
        cells = (a * 20).long() * 20 + (b * 20).long()
        assert abs(chi_square(torch.bincount(cells.flatten(), minlength=400).double())) < 4.5


def test_normal_moments(normal):
    assert normal.mean().item() == pytest.approx(0, abs=4.5 / math.sqrt(COUNT))
    assert normal.var().item() == pytest.approx(1, abs=4.5 * math.sqrt(2 / COUNT))
    z = standardized(normal)
    assert (z**3).mean().item() == pytest.approx(0, abs=4.5 * math.sqrt(15 / COUNT))
    assert (z**4).mean().item() == pytest.approx(3, abs=4.5 * math.sqrt(96 / COUNT))
    assert normal.isfinite().all()
    assert 4.5 < normal.abs().max() < 5.9


def test_normal_has_the_normal_distribution_function(normal):
    """Its image under the distribution function is uniform, in the tails too."""
    u = torch.special.ndtr(normal.flatten())
    assert abs(chi_square(torch.bincount((u * 1000).long().clamp(max=999), minlength=1000).double())) < 4.5
    for tail in (1e-3, 1e-4):
        for share in ((u < tail).double().mean().item(), (u > 1 - tail).double().mean().item()):
            assert share == pytest.approx(tail, abs=4.5 * math.sqrt(tail / COUNT))


def test_box_muller_halves_are_independent_in_their_squares(normal):
    """Columns j and j + count / 2 share a radius: uncorrelated by construction, and in their squares as well."""
    first, second = normal[:, : COLUMNS // 2], normal[:, COLUMNS // 2 :]
    assert abs(correlation(first, second)) < 4.5
    assert abs(correlation(first**2, second**2)) < 4.5


@pytest.mark.parametrize("draw", DRAWS)
def test_neighbours_in_every_direction_are_uncorrelated(draw):
    positions = torch.arange(ROWS)
    base = draw(0, NOISE, positions, COLUMNS).double()
    others = {
        "positions": draw(0, NOISE, positions + 1, COLUMNS),
        "far positions": draw(0, NOISE, positions + 2**40, COLUMNS),
        "seeds": draw(1, NOISE, positions, COLUMNS),
        "far seeds": draw(123456789, NOISE, positions, COLUMNS),
        "columns": draw(0, NOISE, positions, COLUMNS + 1)[:, 1:],
        **{f"stream {s}": draw(0, s, positions, COLUMNS) for s in (TIMESTEPS, AUGMENTATION, CLASS_DROPOUT)},
    }
    for name, other in others.items():
        if name == "columns" and draw is keyed_normal:  # another count pairs the columns anew
            base_now = draw(0, NOISE, positions, COLUMNS + 1)[:, :-1].double()
        else:
            base_now = base
        other = other.double()
        assert not torch.equal(base_now, other), name
        assert abs(correlation(base_now, other)) < 4.5, name
        assert abs(correlation(base_now**2, other**2)) < 4.5, name


def test_no_two_keys_share_a_row():
    """Seeds, streams and positions are told apart: none is the sum of the others."""
    rows = [
        tuple(keyed_uniform(seed, stream, torch.arange(64), 2)[i].tolist())
        for seed in (0, 1, 2, 3)
        for stream in range(4)
        for i in range(64)
    ]
    assert len(set(rows)) == len(rows)


@pytest.mark.parametrize("draw", DRAWS)
def test_a_draw_is_a_function_of_its_key_alone(draw):
    positions = torch.randperm(1000, generator=torch.Generator().manual_seed(0)) * 7919
    whole = draw(5, NOISE, positions, 33)
    assert torch.equal(draw(5, NOISE, positions, 33), whole)
    for split in (1, 7, 500):
        assert torch.equal(torch.cat([draw(5, NOISE, part, 33) for part in positions.split(split)]), whole)
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(1))
    assert torch.equal(draw(5, NOISE, positions[order], 33), whole[order])
    state = torch.get_rng_state()
    draw(5, NOISE, positions, 33)
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is not touched
    assert torch.equal(draw(5, NOISE, positions.int(), 33), whole)


def test_uniform_columns_do_not_depend_on_their_count():
    positions = torch.arange(10)
    assert torch.equal(keyed_uniform(0, NOISE, positions, 3), keyed_uniform(0, NOISE, positions, 9)[:, :3])


@pytest.mark.parametrize("draw", DRAWS)
def test_shapes_and_types(draw):
    for count in (0, 1, 2, 5):
        drawn = draw(0, NOISE, torch.arange(4), count)
        assert (drawn.shape, drawn.dtype) == ((4, count), torch.float32)
    assert draw(0, NOISE, torch.arange(0), 3).shape == (0, 3)


def test_values_are_those_of_the_first_release():
    """A change of these numbers changes every run that is resumed."""
    positions = torch.tensor([0, 1, 2**33])
    expected_uniform = [[0.009139299, 0.354928911], [0.86786288, 0.058013201], [0.665606916, 0.392522097]]
    expected_normal = [
        [0.384151, -0.2708991, -3.0401905],
        [0.5318746, 2.0442312, 0.0235039],
        [-0.5989264, 1.2693644, 0.6748326],
    ]
    torch.testing.assert_close(keyed_uniform(42, NOISE, positions, 2), torch.tensor(expected_uniform), rtol=0, atol=0)
    torch.testing.assert_close(
        keyed_normal(42, NOISE, positions, 3), torch.tensor(expected_normal), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("seed", [-1, 2**31, 2**59])
def test_unusual_seeds_draw_as_well(seed):
    u = keyed_uniform(seed, NOISE, torch.arange(1000), 50)
    assert abs(chi_square(torch.bincount((u.flatten() * 100).long(), minlength=100).double())) < 4.5
