"""The dataset card of a feature table: what the features are, how to open them, which images are missing."""

from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCard, DatasetCardData

from ldae.files import AnyPath, write_whole
from ldae.hub.upload import CARD_FILE, is_sealed_card, seal_card
from ldae.places import is_address

from .folder import DATA_FOLDER


TEMPLATE = Path(__file__).with_name("card_template.md")
LISTED = 20  # unreadable images that the card names; extraction.json names all
SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


def write_dataset_card(folder: AnyPath, noted: dict[str, Any], repo_id: str | None = None) -> None:
    """Write the README.md of a feature table, unless a person has written or edited it.

    Args:
        folder (`Path` or `UPath`): The table's folder.
        noted (`dict`): Content of its `extraction.json`.
        repo_id (`str`, *optional*): Repository that it is pushed to, for the lines that open it.
    """
    path = folder / CARD_FILE
    if not path.is_file() or is_sealed_card(path.read_text(encoding="utf-8")):
        name = folder.name if isinstance(folder, Path) else str(folder)
        write_whole(path, seal_card(_render(noted, repo_id or name)))


def _render(noted: dict[str, Any], name: str) -> str:
    """Render the card of a table that is opened by a path, a repository or an address."""
    opened = f'"{name}", split="{noted["split"]}"'
    if is_address(name):
        opened = f'"parquet", data_files="{name}/{DATA_FOLDER}/*.parquet", split="train"'
    data_files = [{"split": noted["split"], "path": f"{DATA_FOLDER}/*.parquet"}]
    metadata = DatasetCardData(
        configs=[{"config_name": "default", "data_files": data_files}],
        size_categories=[next((words for below, words in SIZES if noted["rows"] < below), "n>1M")],
        tags=["ldae", "image-features", "embeddings"],
    )
    choices = {
        "model": f"`{noted['checkpoint']}`" if "checkpoint" in noted else None,
        "images": noted["source"],
        "layers": _listed(noted["layers"]),
        "time steps": _listed(noted["timesteps"]),
        "joined": "the features of all layers and time steps, one after the other" if noted.get("joined") else None,
        "input": None if noted["layers"] is None else f"noisy, seed {noted['seed']}" if noted["noisy"] else "clean",
        "pooling": "the mean over places" if noted["pool"] == "mean" else "none: the features of all places",
        "computed in": noted["compute_dtype"],
    }
    card = DatasetCard.from_template(
        metadata,
        template_str=TEMPLATE.read_text(encoding="utf-8"),
        opened=opened,
        choices=choices,
        first=next(column for column in noted["columns"] if column.startswith("features")),
        listed=[describe_skip(skip, noted) for skip in noted["skipped"][:LISTED]],
        **{name: noted[name] for name in ("source", "rows", "columns", "streaming", "skipped")},
    )
    return str(card)


def describe_skip(skip: dict[str, Any], noted: dict[str, Any]) -> str:
    """Describe an unreadable image: its row, its name if it has one, and the reason."""
    place = f"row {skip['row']}" + (f" of part {skip['shard']}" if noted["streaming"] else "")
    return place + (f", `{skip['file_name']}`" if skip["file_name"] is not None else "") + f": {skip['reason']}"


def _listed(values: list[Any] | None) -> str | None:
    return None if values is None else ", ".join(map(str, values))
