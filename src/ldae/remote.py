"""Data sets and folders behind an address (s3://, gs://, hf://, https://), reached with fsspec."""

import glob
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import fsspec

from ldae.errors import hide_secrets, one_line
from ldae.files import AnyPath, FolderName
from ldae.places import is_address


# Package of each protocol that fsspec itself does not bring.
PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
# What clients say of credentials that are missing or refused: builtin errors of fsspec, and those of botocore.
REFUSED = ("PermissionError", "NoCredentialsError", "PartialCredentialsError", "TokenRetrievalError")
# Names in an address's query whose values are secret.
SECRETS = re.compile(
    r"(?:^|[-_])(?:signature|sig|token|secret|password|credential|(?:aws)?(?:access|api)?key(?:id)?)$"
)
CREDENTIALS = {
    "s3fs": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; FSSPEC_S3_ANON=true reads a public bucket",
    "gcsfs": "GOOGLE_APPLICATION_CREDENTIALS",
    "adlfs": "AZURE_STORAGE_CONNECTION_STRING",
}


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
    shown, package = _check_protocol(dataset, "data.dataset")
    with _reaching(shown, package):
        system, path = fsspec.core.url_to_fs(dataset)
        if glob.has_magic(path):
            found = system.glob(path)
        elif not _is_web(dataset) and system.isdir(path):
            found = [name for name in system.find(path) if PurePosixPath(name).suffix.lower() in suffixes]
        else:
            found = [path] if system.exists(path) else []
        bucket = None if found else _missing_bucket(system, path, package)
    _check_bucket(bucket, shown)
    if not found:
        raise ValueError(
            f"{shown} holds no {' or '.join(suffixes)} file; give the address of such files, of "
            "their folder, or a pattern. Images must be packed in one of these formats."
        )
    return sorted(name if is_address(name) else system.unstrip_protocol(name) for name in found)


def open_folder(name: FolderName, option: str) -> AnyPath:
    """Return the path of a folder, on this machine or behind an address.

    Args:
        name (`str` or path): The folder; it need not exist.
        option (`str`): Name of the option that it was given by, for messages.

    Returns:
        `Path` or `UPath`: For an address a `UPath`, which has the methods of `Path`.

    Raises:
        ValueError: If an address is misspelt, cannot be reached, or cannot be written to.
    """
    if not isinstance(name, str | os.PathLike):
        return name  # a UPath, whose store has answered already
    address = str(name)
    if not is_address(address):
        if re.match(r"[\w+.-]{2,}:/|\w+::", address) and not Path(address).exists():
            raise ValueError(f"{option}={address!r} is neither a path nor an address such as s3://bucket/folder.")
        return Path(address)
    from upath import UPath

    shown, package = _check_protocol(address, option)
    if _is_web(address):
        raise ValueError(f"{shown} can only be read; give an address that is written to, such as s3://bucket/folder.")
    with _reaching(shown, package):
        folder = UPath(address)
        if folder.protocol in ("file", "local"):
            return Path(folder.path)
        folder.fs.invalidate_cache()  # other processes write there too
        bucket = None if folder.exists() else _missing_bucket(folder.fs, folder.path, package)
    _check_bucket(bucket, shown)
    return folder


def _check_protocol(address: str, option: str) -> tuple[str, str | None]:
    """Check that fsspec knows an address's protocol, and that it holds no credentials.

    Returns:
        How messages show the address, and the package that its protocol needs.
    """
    protocol, _, rest = address.partition("://")
    shown, package = hide_secrets(f"{option}={address!r}"), PACKAGES.get(protocol)
    names = {name.lower() for name, _ in parse_qsl(urlsplit(address).query)}
    signed = any(SECRETS.search(name) for name in names)
    user, at, _ = rest.partition("/")[0].rpartition("@")
    if signed or (at and (":" in user or package in ("s3fs", "gcsfs"))):
        remedy = _credentials(package) if package in CREDENTIALS else "download the files, and name their folder"
        raise ValueError(f"{shown} holds credentials, which would be kept in recipes and cards; {remedy}.")
    if protocol not in {*fsspec.available_protocols(), *fsspec.registry}:
        raise ValueError(f"{shown} cannot be opened; fsspec must know {protocol}://.")
    return shown, package


@contextmanager
def _reaching(shown: str, package: str | None) -> Iterator[None]:
    """Turn the errors of a file system and of its client into one that names the address and the remedy."""
    try:
        yield
    except ImportError as error:
        remedy = f"pip install {package}" if package else f"install what {shown} needs"
        raise ValueError(f"{shown} cannot be opened ({one_line(error)}); {remedy}.") from error
    except Exception as error:  # the file systems' own, of their clients
        raise ValueError(
            f"{shown} cannot be reached ({type(error).__name__}: {one_line(str(error).rstrip('.'))[:300]}); "
            f"{_remedy(error, package)}."
        ) from None  # its own text may hold a secret


def _missing_bucket(system: Any, path: str, package: str | None) -> str | None:
    """Return the name of a path's bucket if the object store has none of that name."""
    bucket = path.partition("/")[0]
    return bucket if package and not system.exists(bucket) else None


def _check_bucket(missing: str | None, shown: str) -> None:
    if missing is not None:
        raise ValueError(f"{shown}: there is no {missing!r}, or these credentials may not see it; check the name.")


def _is_web(address: str) -> bool:
    return address.startswith(("http://", "https://"))


def _remedy(error: Exception, package: str | None) -> str:
    """Say what to do about an error of a file system's client."""
    if package and type(error).__name__ in REFUSED:
        return _credentials(package)
    endpoint = ", the endpoint (AWS_ENDPOINT_URL)" if package == "s3fs" else ""
    return f"check the address{endpoint}, the network and the credentials in the environment"


def _credentials(package: str | None) -> str:
    return f"set credentials in the environment: {CREDENTIALS[str(package)]}"


def files_by_split(files: list[str], folder: str, names: dict[str, str]) -> dict[str, Any]:
    """Group files by the split that their names, or a folder's, begin with; all are `train` if none says so.

    Args:
        files (`list[str]`): Addresses.
        folder (`str`): Address of the data set, whose own name tells nothing; or of its only file.
        names (`dict[str, str]`): From a word to the split that it names.

    Example:
        >>> files = ["s3://b/train-0.parquet", "s3://b/test-0.parquet"]
        >>> files_by_split(files, "s3://b", {"train": "train", "test": "test"})
        {'train': ['s3://b/train-0.parquet'], 'test': ['s3://b/test-0.parquet']}
    """
    splits: dict[str, Any] = {}
    depth = len(PurePosixPath(folder).parts)
    for file in files:
        parts = PurePosixPath(file).parts
        words = [re.split(r"[-_.\d]", part)[0].lower() for part in parts[depth:][-2:] or parts[-1:]]
        splits.setdefault(next((names[word] for word in reversed(words) if word in names), ""), []).append(file)
    unnamed = splits.pop("", [])
    return {"train": splits.pop("train", []) + unnamed, **splits} if "train" in splits or unnamed else splits
