"""Rows of the trajectory and the steps between them: ours beside the paper's."""

import itertools
import math
from dataclasses import dataclass

from ldae.deconstruct.collect import Collection, VariantResults
from ldae.reports.paper_figures import TRAJECTORY


@dataclass(frozen=True)
class Step:
    """A step of the trajectory: the change of accuracy from the row that it is based on.

    Attributes:
        row, base ([`VariantResults`]): The row, and the row that it changes.
        ours (`float`, *optional*, in points): Our change; `None` if one of the two is not measured.
        stderr (`float`, *optional*, in points): Standard error of our change, from the spread of both rows over seeds;
            `None` with one seed.
        paper (`float`, *optional*, in points): The paper's change.
    """

    row: VariantResults
    base: VariantResults
    ours: float | None
    stderr: float | None
    paper: float | None

    @property
    def agrees(self) -> bool | None:
        """The change has the paper's sign; `None` if one is not known, or zero."""
        return self.ours * self.paper > 0 if self.ours and self.paper else None

    @property
    def is_significant(self) -> bool | None:
        """Our change exceeds two standard errors; `None` if these are not known."""
        return None if self.ours is None or self.stderr is None else abs(self.ours) > 2 * self.stderr


def trajectory_steps(found: Collection) -> list[Step]:
    """List the steps between rows of a report, in order; rows 12a and 12b both change row 12."""
    steps = []
    for previous, key in itertools.pairwise(step.row for step in TRAJECTORY):
        base_key = "12" if key in ("12a", "12b") else previous
        row, base = found.row(key), found.row(base_key)
        if row is None or base is None:
            continue
        ours, stderr, paper = None, None, None
        if row.accuracy is not None and base.accuracy is not None:
            ours = round(100 * (row.accuracy.mean - base.accuracy.mean), 6)
            if row.accuracy.stderr is not None and base.accuracy.stderr is not None:
                stderr = 100 * math.hypot(row.accuracy.stderr, base.accuracy.stderr)
        if row.paper is not None and base.paper is not None:
            paper = round(row.paper.accuracy - base.paper.accuracy, 6)  # of one decimal
        steps.append(Step(row, base, ours, stderr, paper))
    return steps


def count_steps(steps: list[Step]) -> str:
    """Say how many steps go the paper's way, and beyond two standard errors; empty if none is measured."""
    measured = [step for step in steps if step.ours is not None]
    if not measured:
        return ""
    agreeing = [step for step in measured if step.agrees]
    text = f"{len(agreeing)} of {len(measured)} steps go the paper's way"
    if all(step.stderr is None for step in measured):
        text += "; with one seed a row there is no standard error to compare them with."
    else:
        beyond = sum(bool(step.is_significant) for step in agreeing)
        against = sum(bool(step.is_significant) for step in measured if step.agrees is False)
        text += f", {beyond} of them beyond two standard errors. "
        text += f"Beyond two standard errors in the other direction: {against}."
    flat = [step.row.number for step in measured if step.paper == 0]
    if flat:
        text += f" The paper's step to row {', '.join(flat)} is zero and has no direction."
    if len(measured) < len(steps):
        text += f" Not measured yet: {len(steps) - len(measured)}."
    return text
