"""Data sets behind an address (s3://, gs://, hf://, https://), found with fsspec."""

import glob
import re
from pathlib import PurePosixPath
from typing import Any

import fsspec

from ldae.errors import one_line
from ldae.places import is_address


# Package of each protocol that fsspec itself does not bring.
PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}


def list_remote(dataset: str, suffixes: tuple[str, ...]) -> list[str]:
    """List the files of a remote data set.

    Credentials are those that the file system finds by itself, in the environment or its own configuration.

    Args:
        dataset (`str`): Address of a file, of a folder, or with a pattern.
        suffixes (`tuple[str, ...]`): Suffixes of files that are looked for in a folder, such as `".parquet"`.

    Returns:
        `list[str]`: Their addresses, sorted.

    Raises:
        ValueError: If a package is missing, the place cannot be reached, or there is no such file.
    """
    protocol = dataset.partition("://")[0]
    try:
        system, path = fsspec.core.url_to_fs(dataset)
        if glob.has_magic(path):
            found = system.glob(path)
        elif protocol not in ("http", "https") and system.isdir(path):
            found = [name for name in system.find(path) if PurePosixPath(name).suffix.lower() in suffixes]
        else:
            found = [path] if system.exists(path) else []
    except (ImportError, ValueError) as error:
        package = PACKAGES.get(protocol)
        remedy = f"pip install {package}" if package else f"fsspec must know {protocol}://"
        raise ValueError(f"data.dataset={dataset!r} cannot be opened ({one_line(error)}); {remedy}.") from error
    except Exception as error:  # the file systems' own, of their clients
        raise ValueError(
            f"data.dataset={dataset!r} cannot be reached ({type(error).__name__}: {one_line(error)[:300]}); check the "
            "address, the network and the credentials in the environment."
        ) from error
    if not found:
        raise ValueError(
            f"data.dataset={dataset!r} holds no {' or '.join(suffixes)} file; give the address of such files, of "
            "their folder, or a pattern. Images must be packed in one of these formats."
        )
    return sorted(name if is_address(name) else system.unstrip_protocol(name) for name in found)


def files_by_split(files: list[str], names: dict[str, str]) -> dict[str, Any]:
    """Group files by the split that their names, or a folder's, begin with; all are `train` if none says so.

    Args:
        files (`list[str]`): Addresses.
        names (`dict[str, str]`): From a word to the split that it names.

    Example:
        >>> files_by_split(["s3://b/train-0.parquet", "s3://b/test-0.parquet"], {"train": "train", "test": "test"})
        {'train': ['s3://b/train-0.parquet'], 'test': ['s3://b/test-0.parquet']}
    """
    splits: dict[str, Any] = {}
    for file in files:
        words = [re.split(r"[-_.\d]", part)[0].lower() for part in PurePosixPath(file).parts[-2:]]
        splits.setdefault(next((names[word] for word in reversed(words) if word in names), ""), []).append(file)
    unnamed = splits.pop("", [])
    return {"train": splits.pop("train", []) + unnamed, **splits} if "train" in splits or unnamed else splits
