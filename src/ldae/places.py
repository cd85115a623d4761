"""Names of checkpoints and data sets: each is a local path or a Hub id, and is refused at once if it is neither."""

import difflib
import glob
import os
import re
import sys
from pathlib import Path

from ldae.errors import one_line


SECONDS = 10.0  # that the Hub has to answer


def check_place(name: str | os.PathLike[str], option: str = "checkpoint", repo_type: str = "model") -> None:
    """Check that a local path exists or that the Hub knows a name, by one question without retries.

    If the Hub cannot be reached, the rest of the process uses what is in its cache.

    Args:
        name: Path or Hub id.
        option: Name of the option that it was given by, for messages.
        repo_type: `"model"` or `"dataset"`.

    Raises:
        ValueError: If it is a path and does not exist, or is not on the Hub. The message names the nearest path.
    """
    name = os.fspath(name)
    if os.path.exists(os.path.expanduser(name)):
        return
    if is_local(name):
        raise ValueError(f"{option}={name!r} does not exist{near_path(name) or '; give ' + _wanted(repo_type) + '.'}")
    _ask_hub(name, option, repo_type)


def place_name(name: str | os.PathLike[str]) -> str:
    """Return the own name of a folder, wherever it lies; a Hub id is returned unchanged."""
    return Path(name).resolve().name if os.path.isdir(name) else os.fspath(name)


def is_address(name: str) -> bool:
    """Return true if a name is an address, behind which fsspec finds files.

    Example:
        >>> is_address("s3://bucket/images/*.parquet"), is_address("namespace/name")
        (True, False)
    """
    return re.match(r"[a-z][a-z0-9+.-]*://", name) is not None


def is_local(name: str) -> bool:
    """Return true if a name is a local path and cannot be a Hub id.

    Example:
        >>> is_local("./run"), is_local("/data/run"), is_local("namespace/name"), is_local("a/b/c"), is_local("my run")
        (True, True, False, True, True)
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    first, slash, _ = name.partition("/")
    if name.startswith((".", "~", os.sep)) or name.endswith("/") or (slash and os.path.isdir(first)):
        return True
    try:
        validate_repo_id(name)
    except HFValidationError:
        return True
    return False


def refuse_pattern(path: str | os.PathLike[str], option: str) -> None:
    """Refuse a path in which `datasets` would see a pattern.

    Raises:
        ValueError: If the path has `*`, `?` or `[`.
    """
    resolved = os.path.realpath(os.path.expanduser(path))
    if glob.has_magic(resolved):
        raise ValueError(
            f"{option}={os.fspath(path)!r} is {resolved!r}, and `datasets` takes *, ? and [ in a path for a pattern; "
            "rename the folder or file."
        )


def check_outside(dataset: str, output_dir: str | os.PathLike[str]) -> None:
    """Refuse an output folder within a folder of images, which would become a part of the data.

    Raises:
        ValueError: If it lies there.
    """
    if dataset == "digits" or is_address(os.fspath(output_dir)):
        return
    data, folder = (Path(name).expanduser().resolve() for name in (dataset, output_dir))
    if data.is_dir() and folder.is_relative_to(data):
        raise ValueError(
            f"output_dir={os.fspath(output_dir)!r} lies in data.dataset={dataset!r}, and what is written there would "
            "be read as data the next time; give a folder outside of it."
        )


def near_path(name: str) -> str:
    """End a message about a path that does not exist with the nearest one that does; empty if none is near."""
    path = Path(name)
    parts, folder = path.parts, Path(path.anchor)
    for index, part in enumerate(parts[1:] if path.anchor else parts):
        if os.path.exists(folder.expanduser() / part):
            folder /= part
            continue
        try:
            close = difflib.get_close_matches(part, os.listdir(folder.expanduser()), n=1)
        except OSError:
            return ""
        rest = parts[index + 1 + bool(path.anchor) :]
        found = [folder / close[0] / Path(*rest), folder / close[0]] if close else []
        return next((f"; did you mean {str(each)!r}?" for each in found if os.path.exists(each.expanduser())), "")
    return ""


def find_data(dataset: str, recipe: Path) -> str:
    """Find the data set that a run's recipe names, from wherever the run is measured.

    A relative path is looked for from here, then from each folder above the recipe, of which the run was started in
    one.

    Args:
        dataset: `digits`, a path, a glob or a Hub id, as the recipe has it.
        recipe: The run's recipe.yaml.

    Returns:
        The path from here; a Hub id is returned unchanged.

    Raises:
        ValueError: If it can only be a path, and is found nowhere.
    """
    if dataset == "digits" or is_address(dataset) or _is_there(dataset):
        return dataset
    for folder in recipe.resolve().parents:
        if not os.path.isabs(os.path.expanduser(dataset)) and _is_there(str(folder / dataset)):
            return os.path.relpath(folder / dataset)
    if is_local(dataset):
        raise ValueError(
            f"dataset={dataset!r} of {recipe} is neither here nor beside a folder above the run; give --dataset, its "
            "path from here."
        )
    return dataset


def _is_there(path: str) -> bool:
    path = os.path.expanduser(path)
    return os.path.exists(path) or (glob.has_magic(path) and any(True for _ in glob.iglob(path, recursive=True)))


def _ask_hub(name: str, option: str, repo_type: str) -> None:
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    if constants.HF_HUB_OFFLINE:
        return
    try:
        HfApi().repo_info(name, repo_type=repo_type, timeout=SECONDS)
    except GatedRepoError as error:
        raise ValueError(f"{option}={name!r} is gated: {one_line(error)} Log in with `hf auth login`.") from error
    except RepositoryNotFoundError as error:
        raise ValueError(
            f"{option}={name!r} is neither a path from here nor a {repo_type} on the Hub that you may read"
            f"{near_path(name) or '; give ' + _wanted(repo_type) + ', or log in with `hf auth login`.'}"
        ) from error
    except HfHubHTTPError:
        return  # a busy Hub: what loads the files tries again
    except Exception as error:  # the network's own errors, of whichever client
        print(f"The Hub cannot be reached ({one_line(error)}); only its cache is used.", file=sys.stderr)
        constants.HF_HUB_OFFLINE = True
        if "datasets" in sys.modules:
            sys.modules["datasets"].config.HF_HUB_OFFLINE = True


def _wanted(repo_type: str) -> str:
    if repo_type == "dataset":
        return "digits, a folder of images, a folder or glob of parquet or webdataset files, or a Hub id"
    return "a run's folder or a Hub id such as namespace/name"
