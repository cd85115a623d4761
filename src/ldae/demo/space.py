"""The page as a Space: a folder to push to the Hub."""

import os
import shutil
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement

import ldae
from ldae.checkpoints import open_config
from ldae.data import DataConfig, list_splits
from ldae.demo.model import WRONG_FAMILY
from ldae.files import write_whole
from ldae.hub.families import Family, family_of
from ldae.hub.model_card import is_hub_name
from ldae.hub.push import check_publishable
from ldae.places import check_place, place_name


MADE_BY = "Made by `ldae demo --export-space`"
CHECKPOINT_FOLDER, PACKAGE_FOLDER = "checkpoint", "ldae"  # inside the Space
# The files of a run's folder that the page reads.
COPIED_FILES = (
    "config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "preprocessor_config.json",
    "scheduler/*.json",
)
TESTED_GRADIO = "6.31.0"  # used where gradio is not installed
TITLE_LENGTH, DESCRIPTION = 30, "Denoise a picture and see what its patches mean"

APP = '''"""The page of {name}; start it with `python app.py`. {made_by}."""

{path_import}from ldae.data import DataConfig
from ldae.demo.model import open_demo_model
from ldae.demo.page import build_page, launch_page


CHECKPOINT = {checkpoint}
IMAGES = {images}  # for examples and neighbours

page = build_page(open_demo_model(CHECKPOINT, IMAGES, name={name!r}))

if __name__ == "__main__":
    launch_page(page)
'''

README = """---
{metadata}---

# {name}

Drop a picture, choose t, and see it clean, noisy and denoised by {what}; see the features of its patches as colours,
by layer and time step{more}. To run it on your own machine: `pip install -r requirements.txt`, then `python app.py`.

{made_by}, ldae {ldae_version}.
"""


def export_space(checkpoint: str, folder: str | os.PathLike[str], data: DataConfig | None = None) -> list[Path]:
    """Write a Space: its app, README and requirements, a copy of ldae, and the files of a local checkpoint.

    Args:
        checkpoint (`str`): A run's folder, which is copied, or a Hub id, which the Space downloads.
        folder (`str` or path): Folder to write; a Space that was exported there before is replaced.
        data ([`~ldae.data.DataConfig`], *optional*): Images for examples and neighbours: the digits or a Hub data set.

    Returns:
        The files.

    Raises:
        ValueError: If the checkpoint is of another kind, the images are only on this machine, or the folder holds
            other files.
    """
    folder, local = Path(folder), Path(checkpoint)
    if folder.is_dir() and any(folder.iterdir()) and not _is_ours(folder / "app.py"):
        raise ValueError(f"export_space={str(folder)!r} holds other files; give a new folder.")
    if data is not None and data.dataset != "digits" and not is_hub_name(data.dataset):
        raise ValueError(
            f"dataset={data.dataset!r} is on this machine, where a Space cannot read it; give digits or a Hub id, or "
            "leave out the images with --dataset none."
        )
    if local.is_dir():
        check_publishable(local)
    elif not is_hub_name(checkpoint):
        check_place(checkpoint)
        raise ValueError(f"checkpoint={checkpoint!r} is no folder; give a run's folder or a Hub id.")
    family = family_of(open_config(checkpoint).model_type, f"checkpoint={checkpoint!r}", WRONG_FAMILY)
    if data is not None:
        list_splits(data)  # fails here, not in the Space, if the data set does not exist

    name = place_name(checkpoint)
    shutil.rmtree(folder / CHECKPOINT_FOLDER, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    if local.is_dir():
        for path in sorted(path for pattern in COPIED_FILES for path in local.glob(pattern)):
            target = folder / CHECKPOINT_FOLDER / path.relative_to(local)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    shutil.rmtree(folder / PACKAGE_FOLDER, ignore_errors=True)
    left_out = shutil.ignore_patterns("__pycache__", "recipes")
    shutil.copytree(Path(ldae.__file__).parent, folder / PACKAGE_FOLDER, ignore=left_out)
    texts = space_texts(name, None if local.is_dir() else checkpoint, family, data)
    for file, text in texts.items():
        write_whole(folder / file, text)
    return sorted(path for path in folder.rglob("*") if path.is_file())


def space_texts(name: str, repo_id: str | None, family: Family, data: DataConfig | None) -> dict[str, str]:
    """Write the text files of a Space, by name; without a `repo_id` the checkpoint is in its folder `checkpoint/`."""
    place, path_import = repr(repo_id), ""
    if repo_id is None:
        place, path_import = f'str(Path(__file__).parent / "{CHECKPOINT_FOLDER}")', "from pathlib import Path\n\n"
    return {
        "app.py": APP.format(
            name=name, made_by=MADE_BY, path_import=path_import, checkpoint=place, images=_as_code(data)
        ),
        "requirements.txt": "".join(f"{requirement}\n" for requirement in page_requirements()),
        "README.md": README.format(
            metadata=yaml.safe_dump(_metadata(name, repo_id, data), sort_keys=False, allow_unicode=True),
            name=name,
            what=family.title,
            more="" if data is None else f"; and see its nearest neighbours in {data.dataset}",
            made_by=MADE_BY,
            ldae_version=ldae.__version__,
        ),
        ".gitattributes": "*.safetensors filter=lfs diff=lfs merge=lfs -text\n",
    }


def page_requirements() -> list[str]:
    """List what ldae and its page need from the package index."""
    found = [Requirement(text) for text in requires("ldae") or []]
    needed = [r for r in found if r.marker is None or r.marker.evaluate({"extra": "demo"})]
    return sorted(f"{requirement.name}{requirement.specifier}" for requirement in needed)


def _metadata(name: str, repo_id: str | None, data: DataConfig | None) -> dict[str, Any]:
    """Build the metadata of the Space's README.md."""
    try:
        gradio = version("gradio")
    except PackageNotFoundError:
        gradio = TESTED_GRADIO
    found: dict[str, Any] = {
        "title": name.rsplit("/", 1)[-1][:TITLE_LENGTH],
        "emoji": "🔎",
        "colorFrom": "blue",
        "colorTo": "gray",
        "sdk": "gradio",
        "sdk_version": gradio,
        "python_version": "3.11",
        "app_file": "app.py",
        "license": "apache-2.0",
        "short_description": DESCRIPTION,
    }
    if repo_id is not None:
        found["models"] = [repo_id]
    if data is not None and data.dataset != "digits":
        found["datasets"] = [data.dataset]
    return found


def _as_code(data: DataConfig | None) -> str:
    if data is None:
        return "None"
    names = ("dataset_config", "split", "image_column", "label_column", "streaming")
    default = DataConfig(data.dataset)
    given = [(name, getattr(data, name)) for name in names if getattr(data, name) != getattr(default, name)]
    return f"DataConfig({', '.join([repr(data.dataset), *(f'{name}={value!r}' for name, value in given)])})"


def _is_ours(app: Path) -> bool:
    return app.is_file() and MADE_BY in app.read_text(encoding="utf-8")
