"""The steps of a run: which are finished with which settings, their results and failures."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list

from ldae.files import hash_settings, write_whole
from ldae.processes import join_processes
from ldae.results import Result, add_result, read_results


STEPS_FILE = "deconstruct.json"
FAILURE_FILE = "failure.json"
ALL_STEPS = "unit"  # the step that is finished when all others of a run are


@dataclass(frozen=True)
class StepFolder:
    """The folder of one variant and seed, or of the baselines.

    `deconstruct.json` holds for each finished step a hash of its settings, its duration, and when it was finished in
    seconds since 1970. The step's measurements are in results.json, each entry with the step's name and that hash, so
    that numbers of other settings are told apart.

    Args:
        path (`Path`): The folder.
    """

    path: Path

    def is_done(self, step: str, settings: Any) -> bool:
        """Tell all processes whether the main one finds a step that was finished with these settings."""
        (done,) = broadcast_object_list([self._finished_with(step) == hash_settings(settings)])
        return done

    def steps(self) -> dict[str, dict[str, Any]]:
        """Read the finished steps by name."""
        file = self.path / STEPS_FILE
        return json.loads(file.read_text()) if file.is_file() else {}

    @contextmanager
    def step(self, name: str, settings: Any) -> Iterator[list[Result]]:
        """Yield a list for a step's results; the main process writes it when the block ends without an error."""
        started = time.perf_counter()
        results: list[Result] = []
        yield results
        if not join_processes().is_main_process:
            return
        used = hash_settings(settings)
        self.path.mkdir(parents=True, exist_ok=True)
        for result in results:
            protocol, details = {**result.protocol, "study": name}, {**result.details, "settings": used}
            add_result(self.path, replace(result, protocol=protocol, details=details))
        done = {"settings": used, "seconds": round(time.perf_counter() - started, 1), "finished": time.time()}
        write_whole(self.path / STEPS_FILE, json.dumps({**self.steps(), name: done}, indent=2) + "\n")

    def results(self, step: str) -> list[dict[str, Any]]:
        """Read what a step measured when it was last finished."""
        current = self._finished_with(step)
        return [
            entry
            for entry in read_results(self.path)
            if entry["protocol"].get("study") == step and entry.get("settings") == current
        ]

    def finished(self, step: str) -> float:
        """Return when a step was last finished, in seconds since 1970; 0 if an earlier version finished it."""
        return self.steps().get(step, {}).get("finished", 0.0)

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

    def _finished_with(self, step: str) -> str | None:
        """Return the hash of the settings that a step was finished with."""
        return self.steps().get(step, {}).get("settings")
