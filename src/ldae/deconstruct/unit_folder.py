"""A run's folder as `deconstruct` sees it: which steps are done with which settings, what they measured, what failed."""

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ldae.files import write_whole
from ldae.results import add_result, read_results


STEPS_FILE = "deconstruct.json"
FAILURE_FILE = "failure.json"
UNIT = "unit"  # the step that is done when all of a unit's are


class UnitFolder:
    """
    The folder of one variant and seed, or of the baselines.

    Args:
        path (`Path`): Its place.

    `deconstruct.json` has for each step that is done a hash of its settings and its duration. What a step measured is in
    results.json, each entry with the name of the step and that hash, so that numbers of other settings are told apart.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def is_done(self, step: str, settings: Any) -> bool:
        """Whether a step was finished with these settings."""
        return self.steps().get(step, {}).get("settings") == settings_hash(settings)

    def steps(self) -> dict[str, dict[str, Any]]:
        """The finished steps by name."""
        file = self.path / STEPS_FILE
        return json.loads(file.read_text()) if file.is_file() else {}

    @contextmanager
    def step(self, name: str, settings: Any) -> Iterator["StepRecorder"]:
        """Measure and note a step: it is done where the block ends without an error."""
        started = time.perf_counter()
        recorder = StepRecorder(self.path, name, settings_hash(settings))
        yield recorder
        done = {"settings": recorder.settings, "seconds": round(time.perf_counter() - started, 1)}
        self.path.mkdir(parents=True, exist_ok=True)
        write_whole(self.path / STEPS_FILE, json.dumps({**self.steps(), name: done}, indent=2) + "\n")

    def results(self, step: str) -> list[dict[str, Any]]:
        """What a step measured when it was last finished."""
        current = self.steps().get(step, {}).get("settings")
        return [
            entry
            for entry in read_results(self.path)
            if entry["protocol"].get("study") == step and entry.get("settings") == current
        ]

    def seconds(self) -> float:
        """What the finished steps took in all."""
        return sum(step["seconds"] for step in self.steps().values())

    def failure(self) -> str | None:
        """What went wrong at the last try, in one line; `None` where nothing did."""
        file = self.path / FAILURE_FILE
        return json.loads(file.read_text())["error"] if file.is_file() else None

    def note_failure(self, error: BaseException | None) -> None:
        """Note what went wrong, or with `None` that nothing does any more."""
        if error is None:
            (self.path / FAILURE_FILE).unlink(missing_ok=True)
            return
        self.path.mkdir(parents=True, exist_ok=True)
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        write_whole(self.path / FAILURE_FILE, json.dumps({"error": text}) + "\n")


class StepRecorder:
    """Adds what a step measures to results.json."""

    def __init__(self, path: Path, step: str, settings: str) -> None:
        self.path, self.name, self.settings = path, step, settings

    def add(self, entry: dict[str, Any]) -> None:
        """An entry of results.json, as of [`~ldae.results.add_result`]; the step's name goes into its protocol."""
        self.path.mkdir(parents=True, exist_ok=True)
        protocol = {**entry["protocol"], "study": self.name}
        add_result(self.path, {**entry, "protocol": protocol, "settings": self.settings})


def settings_hash(settings: Any) -> str:
    """Eight hexadecimal digits of plain settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:8]
