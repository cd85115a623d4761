"""A search over blocks and time steps: ridge probes on held-out images choose, converged probes report both points."""

from dataclasses import replace

import pytest

from ldae.data import iterate_once
from ldae.evaluation.images import fixed_subset
from ldae.evaluation.probing import run_probe
from ldae.evaluation.protocol import Protocol, split_holdout
from ldae.evaluation.ridge import few_shot_ridge
from ldae.evaluation.search import run_searched_probes, search_features


GRID = Protocol("cached", layers=(1, 2, 3), timesteps=(0, 10, 400), horizontal_flip=False)


@pytest.fixture(scope="module")
def few(digits):
    return fixed_subset(digits[0], 300, 0), fixed_subset(digits[1], 120, 0)


@pytest.mark.parametrize("memory", [0, 2**30])
def test_both_points_have_the_probes_that_they_have_alone(model, few, memory):
    found = run_searched_probes(model, *few, GRID, given=[(2, 10)], memory=memory)
    ridge = run_probe(model, *few, GRID, "ridge")
    assert found.search.columns == ridge.columns and len(ridge.columns) == 9
    assert found.found.columns == [ridge.columns[ridge.best], (2, 10)]
    results = found.result(dataset="digits", split="test"), found.result((2, 10), dataset="digits", split="test")
    for (layer, timestep), result in zip(found.found.columns, results, strict=True):
        alone = run_probe(model, *few, replace(GRID, layers=(layer,), timesteps=(timestep,)), "logistic")
        assert abs(result.value - alone.probes.score(0)[0]) < 0.02
        assert result.protocol["penalty"] == alone.describe(0)["penalty"]
    searched, paper = (result.protocol for result in results)
    assert (searched["point"], searched["searched_layers"], searched["searched_timesteps"]) == (
        "searched",
        [1, 2, 3],
        [0, 10, 400],
    )
    assert searched["converged"] and paper["point"] == "paper" and "searched_layers" not in paper


def test_the_chosen_point_may_be_the_given_one(model, few):
    one = replace(GRID, layers=(2,), timesteps=(10,))
    found = run_searched_probes(model, *few, one, given=[(2, 10)])
    assert found.found.columns == [(2, 10)]


def test_what_is_not_in_the_grid_is_refused(model, few):
    with pytest.raises(ValueError, match=r"given=\[\(2, 11\)\] must be cells of the grid"):
        run_searched_probes(model, *few, GRID, given=[(2, 11)])
    with pytest.raises(ValueError, match="protocol='paper' must be cached"):
        run_searched_probes(model, *few, replace(GRID, name="paper"), given=[(2, 10)])


def test_a_search_with_few_labels_sees_few(model, few):
    batches = [list(iterate_once(source, image_size=16, batch_size=300)) for source in few]
    found = search_features(model, *batches, timesteps=[0], shots=3, draws=4)
    assert found.columns == [(layer, t) for layer in (1, 2, 3, 4) for t in (0, 10)] and found.probes is None
    assert found.columns[found.paper] == (2, 10) and found.accuracy == float(found.held_out.max())
    labels = found.train.classes
    kept, held = split_holdout(len(labels))
    cell = found.train.flat[:, 3]
    alone = few_shot_ridge(cell[kept], labels[kept], cell[held], labels[held], shots=3, draws=4)
    assert float(found.held_out[3]) == pytest.approx(sum(alone) / 4)
    every = search_features(model, *batches, timesteps=[0])
    assert every.columns == found.columns and every.probes.held_out is every.held_out
