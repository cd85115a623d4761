"""The steps of a run: which are finished with which settings, their results and failures."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ldae.files import hash_settings, write_whole
from ldae.results import Result, add_result, read_results


STEPS_FILE = "deconstruct.json"
FAILURE_FILE = "failure.json"
ALL_STEPS = "unit"  # the step that is finished when all others of a run are


class StepFolder:
    """The folder of one variant and seed, or of the baselines.

    `deconstruct.json` holds for each finished step a hash of its settings and its duration. The step's measurements
    are in results.json, each entry with the step's name and that hash, so that numbers of other settings are told
    apart.

    Args:
        path (`Path`): The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def is_done(self, step: str, settings: Any) -> bool:
        """Return `True` if a step was finished with these settings."""
        return self.steps().get(step, {}).get("settings") == hash_settings(settings)

    def steps(self) -> dict[str, dict[str, Any]]:
        """Read the finished steps by name."""
        file = self.path / STEPS_FILE
        return json.loads(file.read_text()) if file.is_file() else {}

    @contextmanager
    def step(self, name: str, settings: Any) -> Iterator["StepRecorder"]:
        """Yield a recorder for a step's measurements; the step is finished when the block ends without an error."""
        started = time.perf_counter()
        recorder = StepRecorder(self.path, name, hash_settings(settings))
        yield recorder
        done = {"settings": recorder.settings, "seconds": round(time.perf_counter() - started, 1)}
        self.path.mkdir(parents=True, exist_ok=True)
        write_whole(self.path / STEPS_FILE, json.dumps({**self.steps(), name: done}, indent=2) + "\n")

    def results(self, step: str) -> list[dict[str, Any]]:
        """Read what a step measured when it was last finished."""
        current = self.steps().get(step, {}).get("settings")
        return [
            entry
            for entry in read_results(self.path)
            if entry["protocol"].get("study") == step and entry.get("settings") == current
        ]

    def failure(self) -> str | None:
        """Read the error of the last attempt, in one line; `None` if there was none."""
        file = self.path / FAILURE_FILE
        return json.loads(file.read_text())["error"] if file.is_file() else None

    def note_failure(self, error: BaseException | None) -> None:
        """Note the error of an attempt, or with `None` that it had none."""
        if error is None:
            (self.path / FAILURE_FILE).unlink(missing_ok=True)
            return
        self.path.mkdir(parents=True, exist_ok=True)
        text = f"{type(error).__name__}: {error}".splitlines()[0]
        write_whole(self.path / FAILURE_FILE, json.dumps({"error": text}) + "\n")


class StepRecorder:
    """Writer of a step's measurements to results.json."""

    def __init__(self, path: Path, step: str, settings: str) -> None:
        self.path, self.name, self.settings = path, step, settings

    def add(self, result: Result) -> None:
        """Add a result as [`~ldae.results.add_result`] does, with the step's name in its protocol."""
        self.path.mkdir(parents=True, exist_ok=True)
        protocol = {**result.protocol, "study": self.name}
        add_result(
            self.path, replace(result, protocol=protocol, details={**result.details, "settings": self.settings})
        )
