"""Makes a saved folder loadable where ldae is not installed: the model's own files and the map of auto classes.

The files are those of ``ldae.models``, unchanged: the installed package and the remote code have one source. Where ldae
is imported, its registered classes win and no code from the folder runs.
"""

import json
import os
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_import_files

from ldae.files import write_whole
from ldae.models import backbone_ddae, modeling_ldae, pretraining_ddae


# model_type -> files whose relative imports reach all others of its models, and the map of its auto classes
MODEL_FILES = {"ldae": (modeling_ldae.__file__,), "ddae": (pretraining_ddae.__file__, backbone_ddae.__file__)}
AUTO_MAPS = {
    "ldae": {
        "AutoConfig": "configuration_ldae.LDAEConfig",
        "AutoModel": "modeling_ldae.LDAEModel",
        "AutoModelForPreTraining": "modeling_ldae.LDAEForPreTraining",
        "AutoModelForImageClassification": "modeling_ldae.LDAEForImageClassification",
        "AutoBackbone": "modeling_ldae.LDAEBackbone",
    },
    "ddae": {
        "AutoConfig": "configuration_ddae.DDAEConfig",
        "AutoModel": "modeling_ddae.DDAEModel",
        "AutoModelForPreTraining": "pretraining_ddae.DDAEForPreTraining",
        "AutoModelForImageClassification": "modeling_ddae.DDAEForImageClassification",
        "AutoBackbone": "backbone_ddae.DDAEBackbone",
    },
}


def code_files(model_type: str = "ldae") -> list[Path]:
    """A model's files and every file that their relative imports reach, by name.

    Args:
        model_type: `"ldae"` or `"ddae"`, whose network may be an l-DAE: it reaches the l-DAE's files too.

    Example:
        >>> [path.name for path in code_files()][:2]
        ['configuration_ldae.py', 'corruption_ldae.py']
        >>> {"modeling_ddae.py", "modeling_ldae.py"} <= {path.name for path in code_files("ddae")}
        True
    """
    entries = MODEL_FILES[model_type]
    return sorted({Path(path) for entry in entries for path in (entry, *get_relative_import_files(entry))})


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
        ValueError: there is no config.json, or it is not an l-DAE's or a DDAE's.
    """
    config_path = Path(folder) / "config.json"
    if not config_path.is_file():
        raise ValueError(f"{folder} has no config.json; give the folder that save_pretrained wrote")
    config = json.loads(config_path.read_text(encoding="utf-8"))
    model_type = config.get("model_type")
    if model_type not in AUTO_MAPS:
        known = " and ".join(map(repr, AUTO_MAPS))
        raise ValueError(
            f"{config_path} has model_type={model_type!r}; only {known} can take our code. What `ldae export` wrote is "
            "complete as it is: upload it with `hf upload`."
        )
    written = []
    for source in code_files(model_type):
        target = Path(folder) / source.name
        _write_if_changed(target, source.read_text(encoding="utf-8"))
        written.append(target)
    config["auto_map"] = {**config.get("auto_map", {}), **AUTO_MAPS[model_type]}
    _write_if_changed(config_path, json.dumps(config, indent=2, sort_keys=True) + "\n")
    return written


def _write_if_changed(path: Path, text: str) -> None:
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_whole(path, text)
