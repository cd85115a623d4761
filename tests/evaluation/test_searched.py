"""A search over blocks and time steps: ridge probes on held-out images choose, converged probes report both points."""

from dataclasses import replace

import pytest

from ldae.evaluation.images import fixed_subset
from ldae.evaluation.protocols import Protocol, run_logistic_grid, run_ridge_grid
from ldae.evaluation.searched import run_searched_probes


GRID = Protocol("cached", layers=(1, 2, 3), timesteps=(0, 10, 400), horizontal_flip=False)


@pytest.fixture(scope="module")
def few(digits):
    return fixed_subset(digits[0], 300, 0), fixed_subset(digits[1], 120, 0)


@pytest.mark.parametrize("memory", [0, 2**30])
def test_both_points_have_the_probes_that_they_have_alone(model, few, memory):
    found = run_searched_probes(model, *few, GRID, given=[(2, 10)], memory=memory)
    ridge = run_ridge_grid(model, *few, GRID)
    assert found.ridge.columns == ridge.columns and len(ridge.columns) == 9
    best = max(range(9), key=ridge.held_out)
    assert found.logistic.columns[found.searched] == ridge.columns[best]
    assert found.logistic.columns[found.given[0]] == (2, 10)
    for index in (found.searched, *found.given):
        layer, timestep = found.logistic.columns[index]
        alone = run_logistic_grid(model, *few, replace(GRID, layers=(layer,), timesteps=(timestep,)))
        assert abs(found.logistic.score(index)[0] - alone.score(0)[0]) < 0.02
        assert found.logistic.describe(index)["penalty"] == alone.describe(0)["penalty"]
    details = found.describe(found.searched, "searched")
    assert (details["point"], details["searched_layers"], details["searched_timesteps"]) == (
        "searched",
        [1, 2, 3],
        [0, 10, 400],
    )
    assert details["converged"] and "searched_layers" not in found.describe(found.given[0], "paper")


def test_the_chosen_point_may_be_the_given_one(model, few):
    one = replace(GRID, layers=(2,), timesteps=(10,))
    found = run_searched_probes(model, *few, one, given=[(2, 10)])
    assert found.logistic.columns == [(2, 10)] and (found.searched, found.given) == (0, (0,))


def test_what_is_not_in_the_grid_is_refused(model, few):
    with pytest.raises(ValueError, match=r"given=\[\(2, 11\)\] must be cells of the grid"):
        run_searched_probes(model, *few, GRID, given=[(2, 11)])
    with pytest.raises(ValueError, match="protocol='paper' must be cached"):
        run_searched_probes(model, *few, replace(GRID, name="paper"), given=[(2, 10)])
