"""Data sets as `--dataset` names them, opened without decoding an image."""

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from datasets import ClassLabel, Dataset, IterableDataset, get_dataset_split_names, load_dataset
from datasets import Image as ImageFeature

from ldae.errors import one_line
from ldae.places import check_place, is_address, near_path, refuse_pattern
from ldae.remote import files_by_split, list_remote
from ldae.sections import DataConfig

from . import digits
from .columns import find_image_column, find_label_column, find_other_columns


IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".jp2")
FILE_BUILDERS = {".parquet": "parquet", ".tar": "webdataset"}
# Names of folders that are splits of an image folder, and the names of these splits.
SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "val", "valid", "dev"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
HELD_OUT = 10  # every tenth row is held out of a data set with a single split
ROWS_PER_READ = 256  # of a stream
STREAMED_DIGITS_SHARDS = 8


@dataclass(frozen=True)
class ImageSource:
    """One split of a data set, with its images undecoded.

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`): The rows.
        image_column (`str`): Column of the undecoded images.
        label_column (`str`, *optional*): Column of the labels, if there are any.
        class_names (`list[str]`, *optional*): Names of the classes, if they are known.
        num_examples (`int`, *optional*): Number of rows; may be unknown when streaming.
        streaming (`bool`): The rows can only be read in order.
        name (`str`): The data set, with its configuration if it has several.
        split (`str`): The split, and which of its rows.
        latent_cache (`str`, *optional*): Folder of a cache of latents, which `image_column` then holds instead of
            images; see [`open_latents`].
        other_columns (`tuple[str, ...]`, *optional*): Further columns that were asked for.
        reduced_decoding (`bool`): Large JPEG files are decoded at a reduced scale.
    """

    dataset: Dataset | IterableDataset
    image_column: str
    label_column: str | None
    class_names: list[str] | None
    num_examples: int | None
    streaming: bool
    name: str
    split: str
    latent_cache: str | None = None
    other_columns: tuple[str, ...] = ()
    reduced_decoding: bool = True

    @property
    def description(self) -> str:
        """Data set and split in words, for logs and model cards."""
        cached = "" if self.latent_cache is None else f", latents cached in {self.latent_cache}"
        return f"{self.name} ({self.split}){cached}"


def open_images(
    config: DataConfig, split: str | None = None, *, other_columns: Sequence[str] | None = ()
) -> ImageSource:
    """Open one split of `config.dataset`.

    An image folder whose sub-folders are all named like splits (`train`, `val`, `validation`, `test`) has those
    splits; any other has one split, `train`, of all images below it, whatever the names of its files. Its innermost
    folders are the labels if there are at least two and all images lie equally deep. A glob has one split, `train`.

    Args:
        config (`DataConfig`): The data set and its options.
        split (`str`, *optional*): Split to open; by default `config.split`. Unless the data set is streamed, this may
            be part of one in the notation of `datasets`: `"train[:1000]"`.
        other_columns (`Sequence[str]`, *optional*): Columns to keep beside images and labels; by default none, and
            with `None` all that hold one number, text or class a row.

    Returns:
        [`ImageSource`].

    Raises:
        ValueError: If there is no such data set, split or column, or the data set is empty. The message lists the
            choices.

    Example:
    ```python
    >>> from ldae.data import DataConfig, open_images
    >>> source = open_images(DataConfig("digits"), "test")
    >>> source.num_examples, source.image_column, source.label_column
    (360, 'image', 'label')

    ```
    """
    return _open_split(config, config.split if split is None else split, _locate(config), other_columns)


def open_probe_images(config: DataConfig) -> tuple[ImageSource, ImageSource]:
    """Open the images that probes train on and those they are scored on.

    Probes are scored on `config.eval_split`; by default on `test`, else on `validation` or `val`. A data set with none
    of these beside `config.split` (a glob, a folder of images by class, any whose only split is `train`) is divided by
    row: every tenth row (index % 10 == 9) of `config.split` is held out from the probes' training, and of a stream
    every tenth row of each shard (index + number of the shard), because no reader of a shard knows how many rows come
    before it. Pre-training reads all rows of `config.split`, without labels, so only in this case has it seen the
    images that probes are scored on.

    Args:
        config (`DataConfig`): The data set and its options.

    Returns:
        The training source and the evaluation source, two [`ImageSource`] without a common row.

    Raises:
        ValueError: See [`open_images`]; also if both would have the same rows.

    Example:
    ```python
    >>> from ldae.data import DataConfig, open_probe_images
    >>> [source.description for source in open_probe_images(DataConfig("digits"))]
    ['digits (train)', 'digits (test)']

    ```
    """
    place, split = _locate(config), config.eval_split
    if split is None:
        others = set(place.splits) - {name for name, _ in _split_parts(config.split)}
        split = next((name for name in ("test", "validation", "val") if name in others), None)
    elif any(
        name == other and not (part and rows)  # two parts of a split may be disjoint
        for name, part in _split_parts(split)
        for other, rows in _split_parts(config.split)
    ):
        raise ValueError(
            f"data.eval_split={split!r} has rows of data.split={config.split!r}, and scores on training rows show "
            f"nothing; leave it out to hold out every {HELD_OUT}th row."
        )
    train = _open_split(config, config.split, place)
    if split is not None:
        return train, _open_split(config, split, place)
    return _hold_out(train, evaluation=False), _hold_out(train, evaluation=True)


def list_splits(config: DataConfig) -> list[str]:
    """List the splits of `config.dataset`.

    Raises:
        ValueError: If there is no such data set.
    """
    return _locate(config).splits


def _split_parts(split: str) -> list[tuple[str, str]]:
    """Take `"train[:10]+test"` apart: the name of each split, and which of its rows."""
    parts = [part.strip().partition("[") for part in split.split("+")]
    return [(name.strip(), bracket + rows) for name, bracket, rows in parts]


class _Place(NamedTuple):
    """Location of a data set: the first argument of `load_dataset`, further arguments, and the splits."""

    path: str
    arguments: dict[str, Any]
    splits: list[str]


def _open_split(
    config: DataConfig, split: str, place: _Place, other_columns: Sequence[str] | None = ()
) -> ImageSource:
    names = [name for name, _ in _split_parts(split)]
    if any(name not in place.splits for name in names):
        raise ValueError(
            f"split={split!r} of data.dataset={config.dataset!r} does not exist; the splits are "
            f"{', '.join(place.splits)}."
        )
    if names != [split] and (config.streaming or config.dataset == "digits"):
        raise ValueError(
            f"split={split!r} is part of a split, which needs data.streaming=false and a data set other than digits."
        )
    dataset = _load(config, split, place)
    features = dataset.features
    if features is None:
        raise ValueError(
            f"data.dataset={config.dataset!r} does not declare the types of its columns; convert it to parquet."
        )
    image_column = find_image_column(features, config.image_column)
    label_column = find_label_column(features, config.label_column)
    label = features[label_column] if label_column is not None else None
    num_examples: int | None = None
    if isinstance(dataset, Dataset):
        num_examples = len(dataset)
    elif dataset.info.splits and split in dataset.info.splits:
        num_examples = dataset.info.splits[split].num_examples or None
    if num_examples == 0:
        raise ValueError(f"split={split!r} of data.dataset={config.dataset!r} is empty; choose another.")
    main_columns = [image_column] if label_column is None else [image_column, label_column]
    others = find_other_columns(features, main_columns, other_columns)
    dataset = dataset.select_columns([*main_columns, *others])
    if isinstance(features[image_column], ImageFeature):
        dataset = dataset.cast_column(image_column, ImageFeature(decode=False))
    if not config.streaming:
        dataset = dataset.with_format("arrow")
    return ImageSource(
        dataset=dataset,
        image_column=image_column,
        label_column=label_column,
        class_names=list(label.names) if isinstance(label, ClassLabel) else None,
        num_examples=num_examples,
        streaming=config.streaming,
        name=config.dataset if config.dataset_config is None else f"{config.dataset}, {config.dataset_config}",
        split=split,
        other_columns=others,
        reduced_decoding=config.reduced_decoding,
    )


def _load(config: DataConfig, split: str, place: _Place) -> Any:
    if config.dataset == "digits":
        loaded = digits.load_digits(split)
        return loaded.to_iterable_dataset(num_shards=STREAMED_DIGITS_SHARDS) if config.streaming else loaded
    try:
        options = {"split": split, "streaming": config.streaming, "cache_dir": config.cache_dir, **place.arguments}
        return load_dataset(place.path, config.dataset_config, **options)
    except Exception as error:
        raise _unopened(config, error) from error


def _unopened(config: DataConfig, error: Exception) -> ValueError:
    return ValueError(
        f"data.dataset={config.dataset!r} cannot be opened ({one_line(error)[:300]})"
        + (
            near_path(config.dataset)
            or ". Give digits, a folder of images, a folder or glob of parquet or webdataset files, or a Hub id; name "
            "one of several configurations with data.dataset_config."
        )
    )


def _locate(config: DataConfig) -> _Place:
    """Find a data set and its splits."""
    if config.dataset == "digits":
        return _Place(config.dataset, {}, list(digits.SPLITS))
    path, arguments = _find_builder(config.dataset)
    if "data_files" in arguments:
        return _Place(path, arguments, list(arguments["data_files"]))
    try:
        return _Place(path, arguments, list(get_dataset_split_names(path, config.dataset_config)))
    except Exception as error:
        raise _unopened(config, error) from error


def _find_builder(dataset: str) -> tuple[str, dict[str, Any]]:
    """Find the builder (or folder, or Hub id) and further arguments with which `load_dataset` opens `dataset`."""
    path = Path(dataset).expanduser()
    if is_address(dataset):
        files = list_remote(dataset, tuple(FILE_BUILDERS))
        splits = {"train": files} if glob.has_magic(dataset) else files_by_split(files, dataset, SPLIT_FOLDERS)
        return _builder_of(dataset, files), {"data_files": splits}
    if os.path.exists(path):
        refuse_pattern(dataset, "data.dataset")
    if os.path.isdir(path):  # also false for a name that is too long
        kind = _kind_of_files(path)
        if kind is None:
            raise ValueError(f"data.dataset={dataset!r} holds no image, .parquet or .tar file; give another folder.")
        if kind != "imagefolder":
            return str(path), {}
        return kind, {"data_dir": str(path), "data_files": _image_folder_splits(path)}
    if glob.has_magic(dataset) or os.path.isfile(path):
        files = sorted(name for name in glob.glob(str(path), recursive=True) if os.path.isfile(name))
        if not files:
            raise ValueError(f"data.dataset={dataset!r} matches no file; give a glob of .parquet or .tar files.")
        return _builder_of(dataset, files), {"data_files": {"train": [glob.escape(name) for name in files]}}
    check_place(dataset, "data.dataset", "dataset")
    return dataset, {}


def _builder_of(dataset: str, files: list[str]) -> str:
    suffixes = {Path(name).suffix.lower() for name in files}
    if len(suffixes) != 1 or not suffixes <= set(FILE_BUILDERS):
        raise ValueError(
            f"data.dataset={dataset!r} matches files of {', '.join(sorted(suffixes))}; it must match either .parquet "
            "or .tar files. Give an image folder as a folder."
        )
    return FILE_BUILDERS[suffixes.pop()]


def _kind_of_files(folder: Path) -> str | None:
    """Return the builder of the first image or packed file below a folder."""
    for _, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for suffix in (Path(name).suffix.lower() for name in files if not name.startswith(".")):
            if suffix in FILE_BUILDERS or suffix in IMAGE_SUFFIXES:
                return FILE_BUILDERS.get(suffix, "imagefolder")
    return None


def _image_folder_splits(folder: Path) -> dict[str, list[str]]:
    # `datasets` itself would look for "train" and "test" in the names of files, and silently leave out others.
    names = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names or any(name.lower() not in SPLIT_FOLDERS for name in names):
        return {"train": _image_patterns(folder, folder)}
    splits: dict[str, list[str]] = {}
    for name in names:
        splits.setdefault(SPLIT_FOLDERS[name.lower()], []).extend(_image_patterns(folder, folder / name))
    return splits


def _image_patterns(root: Path, folder: Path, above: tuple[Path, ...] = ()) -> list[str]:
    """Write patterns, relative to `root`, of all images below a folder.

    `datasets` leaves out linked folders, and those whose names begin with `__`, unless a pattern names them. A link
    back to one of the folders that were entered is not followed.
    """
    entered = (*above, folder.resolve())
    patterns = ["/".join([*map(glob.escape, folder.relative_to(root).parts), "**"])]
    for place, folders, _ in os.walk(folder):
        for path in [Path(place, name) for name in sorted(folders)]:
            if path.is_symlink():
                target = path.resolve()
                if any(target.is_relative_to(other) or other.is_relative_to(target) for other in entered):
                    continue
            elif path.name.startswith("__"):
                folders.remove(path.name)
            else:
                continue
            if not path.name.startswith(".") and _kind_of_files(path) == "imagefolder":
                patterns += _image_patterns(root, path, entered)
    return patterns


def held_out_split(split: str, evaluation: bool, row: str = "index") -> str:
    """Describe the rows of a split that are held out for evaluation, or the others."""
    return f"{split}, rows with {row} % {HELD_OUT} {'==' if evaluation else '!='} {HELD_OUT - 1}"


def _hold_out(source: ImageSource, *, evaluation: bool) -> ImageSource:
    kept = source.num_examples
    if kept is not None:
        held_out = kept // HELD_OUT
        kept = held_out if evaluation else kept - held_out
    row, dataset = "index", source.dataset
    if not isinstance(dataset, Dataset):
        shards = list(range(dataset.num_shards))
        row = row if len(shards) == 1 else "(index + shard)"
        arguments = {"dataset": dataset, "shards": shards, "evaluation": evaluation}
        dataset = IterableDataset.from_generator(_kept_of_stream, features=dataset.features, gen_kwargs=arguments)
    elif kept:
        dataset = dataset.select([i for i in range(len(dataset)) if _is_kept(i, evaluation)])
    else:
        raise ValueError(f"{source.description} has too few rows to hold any out; give data.eval_split.")
    return replace(source, dataset=dataset, num_examples=kept, split=held_out_split(source.split, evaluation, row))


def _kept_of_stream(dataset: IterableDataset, shards: list[int], evaluation: bool) -> Iterator[dict[str, Any]]:
    """Yield the held-out rows of some shards, or the others, which are the same ones whoever reads a shard.

    Rows are read by `iter`, because iterating over a stream divides its shards among the workers of torch's loader.
    """
    for shard in shards:
        rows = (
            dict(zip(columns, values, strict=True))
            for columns in dataset.shard(dataset.num_shards, shard).iter(ROWS_PER_READ)
            for values in zip(*columns.values(), strict=True)
        )
        for index, row in enumerate(rows, start=shard):
            if _is_kept(index, evaluation):
                yield row


def _is_kept(index: int, evaluation: bool) -> bool:
    return (index % HELD_OUT == HELD_OUT - 1) == evaluation
