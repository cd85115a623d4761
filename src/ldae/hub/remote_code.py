"""Remote code: a saved model's own Python files and auto classes, for processes without ldae.

The files are copies of those in ``ldae.models``, so the package and the remote code cannot differ. Where ldae is
imported, its registered classes win, and no code from the folder runs.
"""

import json
import os
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_import_files

from ldae.files import write_whole
from ldae.hub.families import FAMILIES, family_of


def code_files(model_type: str = "ldae") -> list[Path]:
    """List a family's files and every file that their relative imports reach, sorted by name.

    Those of a DDAE (`"ddae"`) include those of l-DAE, because its network may be one.

    Example:
        >>> [path.name for path in code_files()][:2]
        ['configuration_ldae.py', 'configuration_shared_ldae.py']
        >>> {"modeling_ddae.py", "modeling_ldae.py"} <= {path.name for path in code_files("ddae")}
        True
    """
    entries = FAMILIES[model_type].entry_files
    return sorted({Path(path) for entry in entries for path in (entry, *get_relative_import_files(entry))})


def save_with_code(folder: str | os.PathLike[str]) -> list[Path]:
    """Add the model's code to a folder that `save_pretrained` wrote, for every auto class, and return its files.

    All auto classes then load the folder with ``trust_remote_code=True`` in a process without ldae, while transformers
    itself would only write the auto class of the saved object. Unchanged files are not written again.

    Raises:
        ValueError: If there is no config.json, or it is of another kind of model.
    """
    config_path = Path(folder) / "config.json"
    if not config_path.is_file():
        raise ValueError(f"{folder} has no config.json; give the folder that save_pretrained wrote.")
    config = json.loads(config_path.read_text(encoding="utf-8"))
    family = family_of(
        config.get("model_type"),
        config_path,
        "A folder that `ldae export` wrote needs no code of ours: upload it with `hf upload`.",
    )
    written = []
    for source in code_files(config["model_type"]):
        target = Path(folder) / source.name
        _write_if_changed(target, source.read_text(encoding="utf-8"))
        written.append(target)
    config["auto_map"] = {**config.get("auto_map", {}), **family.auto_map}
    _write_if_changed(config_path, json.dumps(config, indent=2, sort_keys=True) + "\n")
    return written


def _write_if_changed(path: Path, text: str) -> None:
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_whole(path, text)
