"""Scores that carry their protocol, and a table of them that prints, is saved, and shows itself in a notebook."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ldae.results import add_result


LEVELS = {"noise_sigma": "noise", "noise_timestep": "noise of t ="}


@dataclass(frozen=True)
class Score:
    """
    One measured number with what is needed to measure it again; [`~Score.entry`] is its entry in a results.json.

    Args:
        checkpoint (`str`): What was measured.
        metric (`str`): `"accuracy"`, or `"map"` (mean average precision).
        value (`float`): Between 0 and 1.
        stderr (`float`, *optional*): Standard error over draws or seeds.
        protocol (`dict`): How it was measured.
        seeds (`tuple[int, ...]`): Of what is random in it; 0 where nothing is.
        dataset, split (`str`): On what.
        n (`int`): Test images.
    """

    checkpoint: str
    metric: str
    value: float
    stderr: float | None
    protocol: dict[str, Any]
    seeds: tuple[int, ...]
    dataset: str
    split: str
    n: int

    def __str__(self) -> str:
        return f"{self.value:.1%}" if self.stderr is None else f"{self.value:.1%} ± {self.stderr:.1%}"

    def entry(self) -> dict[str, Any]:
        """As [`~ldae.results.add_result`] takes it."""
        described = {key: value for key, value in asdict(self).items() if value is not None}
        return {**described, "seeds": list(self.seeds)}


def column_title(score: Score) -> str:
    """What a column of such scores is called: its measure, never shared by two."""
    protocol = score.protocol
    name = protocol["name"]
    if name == "ridge" and "labels_per_class" in protocol:
        return f"ridge, {protocol['labels_per_class']} labels a class"
    if name == "robustness":
        levels = [f"{word} {protocol[key]:g}" for key, word in LEVELS.items() if key in protocol]
        return f"ridge, {levels[0] if levels else 'no noise'}"
    titles = {"ridge": "ridge, all labels", "knn": f"kNN, k = {protocol.get('k')}", "linear": "linear, all labels"}
    return titles.get(name, "retrieval mAP" if name == "retrieval" else name)


@dataclass(frozen=True)
class ScoreTable:
    """
    Scores of several encoders: `scores[encoder][column]`, by the columns' titles. `print(table)` is Markdown, and so is what a notebook shows.
    """

    scores: dict[str, dict[str, Score]]

    def __str__(self) -> str:
        rows = [self._cells(name, found) for name, found in self.scores.items()]
        head = ["encoder", *next(iter(self.scores.values()))]
        widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
        lines = [
            " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in [head, *rows]
        ]
        rule = " | ".join("-" * width for width in widths)
        return "\n".join(f"| {line} |" for line in [lines[0], rule, *lines[1:]]) + f"\n\n{self.caption}"

    def _repr_markdown_(self) -> str:
        return str(self)

    @property
    def caption(self) -> str:
        """What the numbers are."""
        score = next(iter(next(iter(self.scores.values())).values()))
        draws = [
            s.protocol["draws"] for found in self.scores.values() for s in found.values() if "draws" in s.protocol
        ]
        spread = f"; ± is the standard error over {draws[0]} draws of the labels, the same for all" if draws else ""
        return (
            f"{score.dataset}: {score.n:,} test images, {score.protocol['train_images']:,} training images; frozen encoders, "
            f"clean images unless it says noise{spread}."
        )

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """
        Add every score to the folder's results.json, and write the table as comparison.md.

        Args:
            folder (`str` or path): Made where it is not there.

        Returns:
            `Path` of results.json.
        """
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        for found in self.scores.values():
            for score in found.values():
                add_result(place, score.entry())
        (place / "comparison.md").write_text(f"{self}\n", encoding="utf-8")
        return place / "results.json"

    @staticmethod
    def _cells(name: str, found: dict[str, Score]) -> list[str]:
        return [name, *(str(score) for score in found.values())]
