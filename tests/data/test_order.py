import numpy as np
import pytest

from ldae.data.order import epoch_order, micro_steps_per_step, run_positions


@pytest.mark.parametrize(("micro", "world"), [(8, 1), (1, 1), (1, 8), (4, 2), (2, 2)])
def test_micro_batches_of_all_processes_fill_each_step(micro, world):
    steps = micro_steps_per_step(micro, 8, world)
    layout = {"first": 24, "micro_batch_size": micro, "world_size": world}
    for step in range(3):
        parts = [run_positions(step * steps + m, rank=r, **layout) for m in range(steps) for r in range(world)]
        assert np.concatenate(parts).tolist() == list(range(24 + step * 8, 32 + step * 8))


def test_sizes_that_do_not_divide():
    with pytest.raises(
        ValueError, match="total_batch_size=8 must be a multiple of micro_batch_size=3 times world_size=1"
    ):
        micro_steps_per_step(3, 8, 1)
    with pytest.raises(ValueError, match="micro_batch_size=0"):
        micro_steps_per_step(0, 8, 1)


def test_epochs_are_permutations_of_their_own():
    first, again, second, other = (epoch_order(50, *key) for key in ((0, 0), (0, 0), (0, 1), (1, 0)))
    assert sorted(first) == list(range(50)) == sorted(second)
    np.testing.assert_array_equal(first, again)
    assert (first != second).any() and (first != other).any()
