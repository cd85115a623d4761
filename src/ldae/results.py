"""A run's results.json: each number with everything that is needed to measure it again.

The file is a JSON list of entries. An entry has these keys, and may have more (all values are plain JSON):

- ``metric`` (str): what was measured, such as "accuracy" or "loss".
- ``value`` (number): the measured value; accuracies are fractions between 0 and 1.
- ``dataset`` (str): the data set's name as the recipe gives it, such as "digits".
- ``split`` (str): the split that was measured, such as "test".
- ``protocol`` (dict): how it was measured. ``protocol["name"]`` names the kind, such as "linear", "ridge" or "knn";
  the rest are its settings (pooling, timestep, block, learning rate, input, ...).
- ``seed`` (int) or ``seeds`` (list of int): the seed, or all seeds that ``value`` is the mean over.
- ``checkpoint`` (str): what was measured: a folder inside the run, ".", or "untrained".
- ``stderr`` (number, optional): the standard error over ``seeds``.
- ``n`` (int, optional): the number of examples measured.
"""

import json
import math
import os
from pathlib import Path
from typing import Any

from ldae.files import write_whole


RESULTS_FILE = "results.json"
REQUIRED_KEYS = ("metric", "value", "dataset", "split", "protocol", "checkpoint")
IDENTITY_KEYS = ("metric", "dataset", "split", "protocol", "seed", "seeds", "checkpoint")


def read_results(folder: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Reads the entries of a folder's results.json.

    Args:
        folder: a run's folder.

    Returns:
        The entries in the order they were first added; an empty list where there is no results.json.

    Raises:
        ValueError: the file is not a JSON list of objects.
    """
    path = Path(folder) / RESULTS_FILE
    if not path.exists():
        return []
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}); restore it or move it away") from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"{path} holds {type(entries).__name__}, expected a list of objects; move it away")
    return entries


def add_result(folder: str | os.PathLike[str], entry: dict[str, Any]) -> None:
    """Adds one entry to a folder's results.json, in place of the one that measured the same thing.

    Two entries measure the same thing where metric, dataset, split, protocol, seeds and checkpoint are equal. The new
    file is written beside the old one and then renamed over it, so a reader never sees half a file.

    Args:
        folder: a run's folder; it must exist.
        entry: the result, with the keys that this module's docstring lists.

    Raises:
        ValueError: a key is missing, the protocol has no name, or the value is not a finite number.

    Example:
        >>> import tempfile
        >>> folder = tempfile.mkdtemp()
        >>> protocol = {"name": "ridge", "labels_per_class": 5}
        >>> entry = {"metric": "accuracy", "value": 0.5, "dataset": "digits", "split": "test", "seed": 0}
        >>> add_result(folder, {**entry, "protocol": protocol, "checkpoint": "."})
        >>> add_result(folder, {**entry, "protocol": protocol, "checkpoint": ".", "value": 0.75})
        >>> [result["value"] for result in read_results(folder)]
        [0.75]
    """
    missing = [key for key in REQUIRED_KEYS if key not in entry]
    if "seed" not in entry and "seeds" not in entry:
        missing.append("seed (or seeds)")
    if missing:
        raise ValueError(f"a result needs {', '.join(missing)}; given were {', '.join(sorted(entry))}")
    if not isinstance(entry["protocol"], dict) or "name" not in entry["protocol"]:
        raise ValueError(f"protocol={entry['protocol']!r} must be a dict with a 'name', such as {{'name': 'knn'}}")
    if isinstance(entry["value"], bool) or not isinstance(entry["value"], int | float):
        raise ValueError(f"value={entry['value']!r} must be a number; give a tensor's .item()")
    if not math.isfinite(entry["value"]):
        raise ValueError(f"value={entry['value']!r} of {entry['metric']} is not finite; a failed run has no result")
    entry = json.loads(json.dumps(entry))  # compare and keep what the file will hold: tuples become lists
    entries = read_results(folder)
    identity = [entry.get(key) for key in IDENTITY_KEYS]
    same = [i for i, old in enumerate(entries) if [old.get(key) for key in IDENTITY_KEYS] == identity]
    if same:
        entries[same[0]] = entry
    else:
        entries.append(entry)
    write_whole(Path(folder) / RESULTS_FILE, json.dumps(entries, indent=2) + "\n")
