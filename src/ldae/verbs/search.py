"""`ldae search FOLDER IMAGE`: find the images of an indexed feature table that are nearest to an image."""

from pathlib import Path
from typing import Any

import torch

from ldae.checkpoints import hash_model
from ldae.data import DataConfig, UnreadableImageError, decode_image, open_images
from ldae.extraction.folder import read_identity
from ldae.extraction.index import indexed_column, nearest_rows, undecoded_images
from ldae.extraction.reader import FeatureReader, open_reader
from ldae.extraction.rows import FILE_NAME, ROW, SHARD, Pixels, model_input
from ldae.processes import choose_device
from ldae.reports.image_grids import NEIGHBOUR_SIDE, neighbour_picture
from ldae.verbs.inputs import table
from ldae.verbs.options.use import SearchOptions


PICTURE = "pictures/search.png"


def search(options: SearchOptions) -> int:
    """Run `ldae search`."""
    noted = read_identity(options.folder)
    column = indexed_column(options.folder, options.column)
    record = {"bytes": None, "path": options.image}
    vector = _features_of(record, noted, column, options)
    rows = nearest_rows(options.folder, vector, options.k, column, options.cache_dir)
    print(f"Nearest to {options.image} of {noted['rows']:,} rows of {noted['source']}:")
    names = list(rows[0])
    print(table([names, *([_as_text(row[name]) for name in names] for row in rows)]))
    _draw(record, rows, noted, options)
    return 0


def _features_of(record: dict[str, Any], noted: dict[str, Any], column: str, options: SearchOptions) -> torch.Tensor:
    """Compute the column's features `(F,)` of the image by the model of the table."""
    device = choose_device(options.device)
    reader, pixels = _open_model(noted, options, device)
    try:
        image = torch.from_numpy(pixels(record)[0])[None]  # (1, C, S, S)
    except UnreadableImageError as error:
        raise ValueError(f"image={options.image!r} cannot be read ({error.reason}); give another file.") from error
    values = reader(model_input(image.to(device)), torch.zeros(1, dtype=torch.int64, device=device))
    return values[column][0]


def _open_model(noted: dict[str, Any], options: SearchOptions, device: torch.device) -> tuple[FeatureReader, Pixels]:
    checkpoint = options.checkpoint or noted.get("checkpoint")
    if checkpoint is None:
        raise ValueError(f"the table in {options.folder} does not name the model that made it; give --checkpoint.")
    choices = {name: noted[name] for name in ("layers", "timesteps", "noisy", "seed", "pool")}
    choices["join"] = noted.get("joined", False)
    dtype = torch.bfloat16 if noted["compute_dtype"] == "bfloat16" else None
    try:
        reader, pixels = open_reader(checkpoint, device, **choices, dtype=dtype)
    except ValueError as error:
        raise ValueError(f"{error} Say with --checkpoint where the model of the table is now.") from error
    if hash_model(reader.encoder.module) != noted["model"]:
        raise ValueError(
            f"checkpoint={checkpoint!r} is not the model of the table in {options.folder}; give the one it was made "
            "with."
        )
    return reader, pixels


def _draw(record: dict[str, Any], rows: list[dict[str, Any]], noted: dict[str, Any], options: SearchOptions) -> None:
    """Draw the neighbours, if the images can be found again."""
    data = noted.get("data", {}) | ({} if options.dataset is None else {"dataset": options.dataset})
    try:
        source = open_images(DataConfig(**data, cache_dir=options.cache_dir))
        if not source.streaming and source.num_examples != noted["num_examples"]:
            raise ValueError(f"{source.description} has {source.num_examples} rows, not {noted['num_examples']}")
        images = [
            torch.from_numpy(decode_image(found, 3, NEIGHBOUR_SIDE)[0])
            for found in (record, *undecoded_images(source, rows))
        ]
    except (ValueError, OSError, TypeError) as error:
        print(f"No picture: the images were not found again ({error}). Say with --dataset where they are.")
        return
    captions = [[Path(options.image).name], *([f"{row['score']:.3f}", *_caption(row)] for row in rows)]
    path = Path(options.folder) / PICTURE if options.output is None else Path(options.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        neighbour_picture(images, captions).save(path)
    except ValueError as error:  # of a suffix that names no format
        raise ValueError(f"output={str(path)!r} cannot be written ({error}); give a name such as near.png.") from error
    print(f"Picture: {path}")


def _caption(row: dict[str, Any]) -> list[str]:
    """Describe a row in short: its place, then its first other columns."""
    place = f"row {row[ROW]}" + (f" of part {row[SHARD]}" if SHARD in row else "")
    others = [_as_text(value) for name, value in row.items() if name not in ("score", ROW, SHARD, FILE_NAME)]
    return [place, *others[:2]]


def _as_text(value: Any) -> str:
    return "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
