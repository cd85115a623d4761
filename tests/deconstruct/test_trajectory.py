"""The steps of the trajectory: their change, sign and size against the spread, and the line that counts them."""

from types import SimpleNamespace

import pytest

from ldae.deconstruct.collect import Collection, VariantResults, summarise
from ldae.deconstruct.report_tables import steps_table
from ldae.deconstruct.trajectory import count_steps, trajectory_steps
from ldae.deconstruct.variants import Variant


def row(key: str, *accuracies: float) -> VariantResults:
    """A row with these accuracies by seed, or none of them."""
    found = summarise([{"value": value} for value in accuracies]) if accuracies else None
    empty = {name: {} for name in ("blocks", "timesteps", "samples", "failures", "left_out")}
    variant = Variant(f"rows/{key}_x", key, f"{key}_x", {})
    about = {"images": None, "seconds": 0.0, "hardware": None}
    return VariantResults(variant=variant, runs=(), searched=found, at_paper=None, **empty, **about)


def steps_of(*rows: VariantResults):
    preset: SimpleNamespace = SimpleNamespace()
    return trajectory_steps(Collection(folder=None, preset=preset, rows=list(rows), sweep=[], baselines={}))


def test_each_step_has_its_change_its_sign_and_its_size_against_the_spread():
    # The paper: row 1 +5.0, row 2 -4.1, row 10 0.0 on row 9, 12a +0.5 and 12b -3.0, both on row 12.
    steps = steps_of(
        row("00", 0.50, 0.52),
        row("01", 0.60, 0.62),
        row("02", 0.62, 0.66),
        row("09", 0.70, 0.71),
        row("10", 0.71, 0.73),
        row("12", 0.70, 0.72),
        row("12a", 0.70, 0.74),
        row("12b", 0.60, 0.62),
    )
    assert [step.row.variant.key for step in steps] == ["01", "02", "10", "12a", "12b"]
    assert steps[-1].base.variant.key == steps[-2].base.variant.key == "12"
    assert [round(step.ours, 6) for step in steps] == [10, 3, 1.5, 1, -10]
    assert steps[0].stderr == pytest.approx(2**0.5)  # 1 point each
    assert [step.agrees for step in steps] == [True, False, None, True, True]
    assert [step.is_significant for step in steps] == [True, False, False, False, True]
    assert count_steps(steps) == (
        "3 of 5 steps go the paper's way, 2 of them beyond two standard errors. Beyond two standard errors in the "
        "other direction: 0. The paper's step to row 10 is zero and has no direction."
    )
    table = [cells[2:] for cells in steps_table(steps).rows]
    assert table[0] == ["+10.0 ± 1.4", "+5.0", "the paper's", "yes"]
    assert table[1] == ["+3.0 ± 2.2", "-4.1", "the other", "no"]
    assert table[2] == ["+1.5 ± 1.1", "+0.0", "the paper's is zero", "no"]


def test_a_change_of_zero_has_no_sign():
    steps = steps_of(row("00", 0.6, 0.8), row("01", 0.7, 0.7), row("02", 0.6, 0.7))
    assert [step.agrees for step in steps] == [None, True]
    assert next(cells[2:5] for cells in steps_table(steps).rows) == ["+0.0 ± 10.0", "+5.0", "ours is zero"]
    assert count_steps(steps).startswith("1 of 2 steps go the paper's way, 0 of them")


def test_with_one_seed_there_is_no_verdict():
    steps = steps_of(row("00", 0.5), row("01", 0.6), row("02"))
    assert [cells[2:] for cells in steps_table(steps).rows] == [
        ["+10.0", "+5.0", "the paper's", "one seed"],
        ["not run", "-4.1", "", ""],
    ]
    assert count_steps(steps) == (
        "1 of 1 steps go the paper's way; with one seed a row there is no standard error to compare them with. "
        "Not measured yet: 1."
    )
    assert count_steps(steps_of(row("00"), row("01"))) == ""
