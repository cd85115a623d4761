"""A table of several encoders' results that prints, is saved, and shows itself in a notebook."""

import os
from dataclasses import dataclass
from pathlib import Path

from ldae.results import Result, add_result


LEVELS = {"noise_sigma": "noise", "noise_timestep": "noise of t ="}


def column_title(score: Result) -> str:
    """Name the column of such scores after their measure, so that no two measures share one."""
    protocol = score.protocol
    name = protocol["name"]
    if name == "ridge" and "labels_per_class" in protocol:
        return f"ridge, {protocol['labels_per_class']} labels a class"
    if name == "robustness":
        levels = [f"{word} {protocol[key]:g}" for key, word in LEVELS.items() if key in protocol]
        return f"ridge, {levels[0] if levels else 'no noise'}"
    whitened = f", {protocol['whiten']} whitened" if "whiten" in protocol else ""
    titles = {
        "ridge": "ridge, all labels",
        "knn": f"kNN, k = {protocol.get('k')}{whitened}",
        "logistic": "logistic, all labels",
        "linear": "linear, all labels",
        "retrieval": f"retrieval mAP{whitened}",
    }
    return titles.get(name, name)


@dataclass(frozen=True)
class ScoreTable:
    """Scores of several encoders, `scores[encoder][column]` by the columns' titles; it prints as Markdown."""

    scores: dict[str, dict[str, Result]]

    def __str__(self) -> str:
        head = ["encoder", *next(iter(self.scores.values()))]
        rows = [head, *([name, *map(str, found.values())] for name, found in self.scores.items())]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        rows.insert(1, ["-" * width for width in widths])
        lines = [" | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        return "\n".join(f"| {line} |" for line in lines) + f"\n\n{self.caption}"

    def _repr_markdown_(self) -> str:
        return str(self)

    @property
    def caption(self) -> str:
        """Sentence that says what the numbers are."""
        score = next(iter(next(iter(self.scores.values())).values()))
        columns = next(iter(self.scores.values())).values()
        draws = next((column.protocol["draws"] for column in columns if "draws" in column.protocol), None)
        spread = f"; ± is the standard error over {draws} draws of the labels, the same for all" if draws else ""
        return (
            f"{score.dataset}: {score.n:,} test images, {score.protocol['train_images']:,} training images; frozen "
            f"encoders, clean images unless it says noise{spread}."
        )

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Add every score to the folder's results.json, and write the table as comparison.md.

        Args:
            folder (`str` or path): Made where it is not there.

        Returns:
            `Path` of results.json.
        """
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        add_result(place, *(score for found in self.scores.values() for score in found.values()))
        (place / "comparison.md").write_text(f"{self}\n", encoding="utf-8")
        return place / "results.json"
