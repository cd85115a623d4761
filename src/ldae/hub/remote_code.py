"""Makes a saved folder loadable where ldae is not installed: the model's own files and the map of auto classes.

The files are those of ``ldae.models``, unchanged: the installed package and the remote code have one source. Where ldae
is imported, its registered classes win and no code from the folder runs.
"""

import json
import os
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_import_files

from ldae.models import modeling_ldae
from ldae.whole_file import write_whole


AUTO_MAP = {
    "AutoConfig": "configuration_ldae.LDAEConfig",
    "AutoModel": "modeling_ldae.LDAEModel",
    "AutoModelForPreTraining": "modeling_ldae.LDAEForPreTraining",
    "AutoModelForImageClassification": "modeling_ldae.LDAEForImageClassification",
    "AutoBackbone": "modeling_ldae.LDAEBackbone",
}


def code_files() -> list[Path]:
    """The model's file and every file that its relative imports reach, by name.

    Example:
        >>> [path.name for path in code_files()][:2]
        ['configuration_ldae.py', 'corruption_ldae.py']
    """
    entry = Path(modeling_ldae.__file__)
    return sorted({entry, *(Path(path) for path in get_relative_import_files(entry))})


def save_with_code(folder: str | os.PathLike[str]) -> list[Path]:
    """Adds the model's code to a folder that `save_pretrained` wrote, for every auto class.

    All auto classes then load the folder with ``trust_remote_code=True`` in a process without ldae; transformers' own
    way writes the one auto class that the saved object belongs to. Files that are already as they should be are not
    written again.

    Args:
        folder: a saved model's folder, with its config.json.

    Returns:
        The code files in the folder.

    Raises:
        ValueError: there is no config.json, or it is not an l-DAE's.
    """
    config_path = Path(folder) / "config.json"
    if not config_path.is_file():
        raise ValueError(f"{folder} has no config.json; give the folder that save_pretrained wrote")
    config = json.loads(config_path.read_text(encoding="utf-8"))
    if config.get("model_type") != "ldae":
        raise ValueError(f"{config_path} has model_type={config.get('model_type')!r}; only 'ldae' can take our code")
    written = []
    for source in code_files():
        target = Path(folder) / source.name
        _write_if_changed(target, source.read_text(encoding="utf-8"))
        written.append(target)
    config["auto_map"] = {**config.get("auto_map", {}), **AUTO_MAP}
    _write_if_changed(config_path, json.dumps(config, indent=2, sort_keys=True) + "\n")
    return written


def _write_if_changed(path: Path, text: str) -> None:
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_whole(path, text)
