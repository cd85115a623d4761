"""A run's results.json, each number with everything that is needed to measure it again, and its log, metrics.jsonl.

results.json is a JSON list with an entry for each [`Result`], whose fields are its keys; one seed is called `seed`,
several are `seeds`, and `details` are keys of their own.
"""

import json
import math
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ldae.errors import one_line
from ldae.files import write_whole


RESULTS_FILE = "results.json"
METRICS_FILE = "metrics.jsonl"
IDENTITY_KEYS = ("metric", "dataset", "split", "seed", "seeds", "checkpoint")
FOUND = ("penalty", "learning_rate_at_edge", "converged", "iterations")  # of a protocol, what the probe itself found


@dataclass(frozen=True)
class Result:
    """One measured number with what is needed to measure it again.

    Args:
        metric (`str`): What was measured, such as `"accuracy"` or `"loss"`.
        value (`float`): The measured value; accuracies are fractions between 0 and 1.
        dataset (`str`): Name of the data set as the recipe gives it, such as `"digits"`.
        split (`str`): The split that was measured, such as `"test"`.
        protocol (`dict`): How it was measured. `protocol["name"]` names the kind, such as `"linear"`, `"ridge"` or
            `"knn"`; the rest are its settings (pooling, timestep, block, learning rate, input, ...).
        seeds (`int` or `Sequence[int]`): The seed, or all seeds that `value` is the mean over.
        checkpoint (`str`, defaults to `"."`): What was measured: a folder inside the run, `"."`, or `"untrained"`.
        stderr (`float`, *optional*): Standard error over draws or seeds.
        n (`int`, *optional*): Number of examples.
        details (`dict`): Further keys of the entry, such as `chosen` or `held_out_value`.

    Raises:
        ValueError: If the protocol has no name, or the value is not a finite number.

    Example:
        >>> result = Result("accuracy", 0.75, "digits", "test", {"name": "knn", "k": 20}, stderr=0.01)
        >>> str(result), result.entry()["seed"]
        ('75.0% ± 1.0%', 0)
    """

    metric: str
    value: float
    dataset: str
    split: str
    protocol: dict[str, Any]
    seeds: int | Sequence[int] = 0
    checkpoint: str = "."
    stderr: float | None = None
    n: int | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.protocol, dict) or "name" not in self.protocol:
            raise ValueError(f"protocol={self.protocol!r} must be a dict with a 'name', such as {{'name': 'knn'}}")
        if isinstance(self.value, bool) or not isinstance(self.value, int | float):
            raise ValueError(f"value={self.value!r} must be a number; give a tensor's .item()")
        if not math.isfinite(self.value):
            raise ValueError(f"value={self.value!r} of {self.metric} is not finite; a failed run has no result")

    def __str__(self) -> str:
        return f"{self.value:.1%}" if self.stderr is None else f"{self.value:.1%} ± {self.stderr:.1%}"

    @classmethod
    def from_entry(cls, entry: dict[str, Any]) -> "Result":
        """Make the result of an entry of results.json."""
        names = {field.name for field in fields(cls)} - {"details", "seeds"}
        given = {name: value for name, value in entry.items() if name in names}
        more = {name: value for name, value in entry.items() if name not in names | {"seed", "seeds"}}
        return cls(**given, seeds=entry.get("seeds", entry.get("seed", 0)), details=more)

    def entry(self) -> dict[str, Any]:
        """Build the entry of results.json."""
        seeds = {"seed": self.seeds} if isinstance(self.seeds, int) else {"seeds": list(self.seeds)}
        always = {name: getattr(self, name) for name in ("metric", "value", "dataset", "split", "protocol")}
        optional = {"n": self.n, "stderr": self.stderr}
        measured = {name: value for name, value in optional.items() if value is not None}
        return {**always, **seeds, "checkpoint": self.checkpoint, **measured, **self.details}


def check_results(folder: str | os.PathLike[str]) -> None:
    """Check that a folder's results.json can be read and written, before hours are spent on what it is to hold.

    Args:
        folder (`str` or path): A run's folder; it is created if it does not exist.

    Raises:
        ValueError: If the file is broken, or the folder cannot be written to.
    """
    read_results(folder)
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path, prefix=f".{RESULTS_FILE}.") as probe:
            probe.write(b"\n" * 4096)
    except OSError as error:
        raise ValueError(
            f"output_dir={str(path)!r} cannot be written to ({error.strerror}); give --output_dir, a folder that can."
        ) from error


def read_results(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read the entries of a folder's results.json.

    Args:
        folder (`str` or path): A run's folder.

    Returns:
        `list[dict]`: the entries in the order they were first added; empty without a results.json.

    Raises:
        ValueError: If the file is not a JSON list of results.
    """
    path = Path(folder) / RESULTS_FILE
    if not path.exists():
        return []
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({one_line(error)}); restore it or move it away.") from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{path} holds {type(entries).__name__}, not a list of objects; restore it or move it away.")
    for number, entry in enumerate(entries, 1):
        try:
            result = Result.from_entry(entry)
            whole = all(isinstance(v, str) for v in (result.metric, result.dataset, result.split, entry["checkpoint"]))
        except (KeyError, TypeError, ValueError):
            whole = False
        if not whole:
            raise ValueError(f"{path}: entry {number} is no result; restore the file or move it away.")
    return entries


def add_result(folder: str | os.PathLike[str], *results: Result) -> None:
    """Add results to a folder's results.json, each in place of the one that measured the same thing.

    Two entries measure the same thing if metric, dataset, split, protocol, seeds and checkpoint are equal. What a
    probe itself found, such as its penalty, does not count: the weights may have been trained further in between.
    Processes that add results at the same time wait for each other. Numbers in protocol and details that are not
    finite, which JSON does not have, become null.

    Args:
        folder (`str` or path): A run's folder; it must exist.
        *results ([`Result`]): What was measured.

    Raises:
        ValueError: If the present file is broken; it is then unchanged, as after an error in writing.
        OSError: If the file cannot be written.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> for value in (0.5, 0.75):
        ...     add_result(folder, Result("accuracy", value, "digits", "test", {"name": "ridge"}))
        >>> [entry["value"] for entry in read_results(folder)]
        [0.75]
    """
    with _held(folder):
        entries = read_results(folder)
        for result in results:
            # Compare and keep what the file will hold: tuples become lists.
            entry = json.loads(json.dumps(result.entry()), parse_constant=lambda name: None)
            same = [i for i, old in enumerate(entries) if _identity(old) == _identity(entry)]
            place = same[0] if same else len(entries)
            entries[place : place + 1] = [entry]
            entries = [old for i, old in enumerate(entries) if i not in same[1:]]
        write_whole(Path(folder) / RESULTS_FILE, json.dumps(entries, indent=2) + "\n")


def reassign_results(folder: str | os.PathLike[str], old: str, new: str) -> None:
    """Name another checkpoint in the results of one, because its weights are to be replaced.

    Args:
        folder (`str` or path): A run's folder.
        old (`str`): The checkpoint so far, as in [`Result`].
        new (`str`): Where its weights are kept, or were.
    """
    with _held(folder):
        entries = read_results(folder)
        if any(entry["checkpoint"] == old for entry in entries):
            renamed = [{**entry, "checkpoint": new} if entry["checkpoint"] == old else entry for entry in entries]
            write_whole(Path(folder) / RESULTS_FILE, json.dumps(renamed, indent=2) + "\n")


def read_metrics(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read the lines of a run's metrics.jsonl, except for damaged ones, such as a last one that a kill cut short."""
    path = Path(folder) / METRICS_FILE
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict) and isinstance(record.get("images"), int):
                records.append(record)
    return records


def _identity(entry: dict[str, Any]) -> list[Any]:
    """Return what an entry measured."""
    found = {*FOUND, "learning_rate"} if "learning_rates_tried" in entry["protocol"] else FOUND
    protocol = {key: value for key, value in entry["protocol"].items() if key not in found}
    return [protocol, *(entry.get(key) for key in IDENTITY_KEYS)]


@contextmanager
def _held(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Let no other process add results to a folder meanwhile, if its system has locks of folders."""
    try:
        import fcntl
    except ImportError:  # on Windows
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)  # which also ends the lock
