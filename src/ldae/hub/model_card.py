"""Model cards: the README.md of a run's folder, with the Hub's metadata.

Everything in a card comes from the folder: config.json, recipe.yaml, metrics.jsonl, results.json and pictures/. A card
that was written or edited by hand is never overwritten.
"""

import json
import math
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from safetensors import safe_open

from ldae.checkpoints import loading
from ldae.files import write_whole
from ldae.hub.families import family_of
from ldae.hub.upload import CARD_FILE, is_sealed_card, seal_card
from ldae.models.configuration_ldae import MODEL_SIZES
from ldae.options import read_yaml
from ldae.places import check_place
from ldae.results import read_metrics, read_results


TEMPLATE = Path(__file__).with_name("model_card_template.md")
# The Hub's names for the tasks of some kinds of results; all others are of classification.
TASKS = {"generation": "unconditional-image-generation", "alignment_uniformity": "image-feature-extraction"}
DEFAULT_LICENSE = "apache-2.0"
TARGETS = {
    "noise": "the noise",
    "latent": "the clean latents",
    "projected_image": "the projection of the clean image onto the latent space",
    "image": "the clean image",
}
RAW = "the weights before averaging"
SHOWN_ROWS = 12  # of a table; in one with more, rows that differ only in layer, time step or checkpoint are one
COSTS = {
    "images": "{:,} images seen",
    "seconds": "{:,.0f} seconds of training",
    "hardware": "on {}",
    "processes": "processes: {}",
    "images_per_second": "{:,.0f} images a second at the end",
    "peak_memory_gib": "at most {:.1f} GiB of memory",
    "loss": "last training loss {:.4g}",
    "weights": "weights: {}",
}


def write_model_card(
    folder: str | os.PathLike[str],
    *,
    repo_id: str | None = None,
    license: str | None = None,
    update_metadata: bool = False,
) -> Literal["written", "metadata", "kept"]:
    """Write a run's README.md, unless it was written or edited by hand.

    Args:
        folder (`str` or path): A run's folder.
        repo_id (`str`, *optional*): Hub id for the card's title and code; by default the folder's name.
        license (`str`, *optional*): The weights' licence as the Hub spells it; by default the present card's, or else
            "apache-2.0".
        update_metadata (`bool`, defaults to `False`): Whether to add the run's results and tags to the metadata of a
            card that is kept; its text and its other metadata do not change.

    Returns:
        "written" for a new or updated card of ours, "metadata" if only the metadata of a card by hand changed, "kept"
        if such a card did not change.

    Raises:
        ValueError: If the folder has no config.json, or one of another kind of model.
    """
    path = Path(folder) / CARD_FILE
    card = render_model_card(folder, repo_id=repo_id, license=license or read_license(folder) or DEFAULT_LICENSE)
    present = path.read_text(encoding="utf-8") if path.is_file() else None
    if present is None or is_sealed_card(present):
        write_whole(path, seal_card(str(card)))
        return "written"
    if not update_metadata:
        return "kept"
    by_hand = ModelCard(present, ignore_metadata_errors=True)
    _merge_metadata(by_hand.data, card.data)
    write_whole(path, str(by_hand))
    return "metadata"


def read_license(folder: str | os.PathLike[str]) -> str | None:
    """Read the licence from the card in a folder, if there is one."""
    path = Path(folder) / CARD_FILE
    if not path.is_file():
        return None
    return ModelCard(path.read_text(encoding="utf-8"), ignore_metadata_errors=True).data.get("license")


def render_model_card(
    folder: str | os.PathLike[str], *, repo_id: str | None = None, license: str = DEFAULT_LICENSE
) -> ModelCard:
    """Render a run's card from its files, with a model-index entry for each result; see [`write_model_card`]."""
    folder = Path(folder)
    config_path = folder / "config.json"
    if not config_path.is_file():
        check_place(folder)
        raise ValueError(
            f"checkpoint={str(folder)!r} has no config.json; give a run's folder, or one that save_pretrained wrote."
        )
    with loading(folder):
        fields = json.loads(config_path.read_text(encoding="utf-8"))
        model_type = fields.get("model_type")
    remedy = "Write the README.md of another model by hand, and upload the folder with `hf upload`."
    family = family_of(model_type, config_path, remedy)
    with loading(folder):
        config = family.config_class.from_dict(fields)
    is_classifier = any("Classification" in name for name in config.architectures or [])
    is_denoiser = any("PreTraining" in name for name in config.architectures or [])
    run = _encoder_run(folder) if is_classifier else None  # the run that a probe's encoder comes from
    recipe_path = (run or folder) / "recipe.yaml"
    recipe = read_yaml(recipe_path) if recipe_path.is_file() else {}
    recipe_text = recipe_path.read_text(encoding="utf-8").strip() if recipe else ""
    data = recipe.get("data", {})
    place = (config.feature_layer or config.num_hidden_layers, config.feature_timestep)
    results = read_results(run or folder)
    if run is not None:  # those that the probe's classifier was chosen for
        results = [e for e in results if e.get("chosen") and e["checkpoint"] == "." and _is_at(e, place)]
    if recipe.get("training", {}).get("ema_decay") is not None:  # the averaged weights are exported
        raw = [e["checkpoint"] == "." and e["protocol"].get("weights") == "raw" for e in results]
        results = [{**e, "checkpoint": RAW} if is_raw else e for e, is_raw in zip(results, raw, strict=True)]
    groups = _group_results([entry for entry in results if not is_rejected(entry)])
    # The model-index holds only this model's results, of a large group those at its own layer and time step; the
    # tables in the text also hold the baselines.
    listed = [entry for group in groups for entry in group if len(group) == 1 or _is_at(entry, place)]
    name = folder.resolve().name if run is None else f"{run.name}-{folder.resolve().name}"
    model_id = repo_id or name
    has_code = repo_id is not None or any(folder.glob("modeling_*.py"))  # a push adds the code
    base_model = recipe.get("training", {}).get("push_to_hub") if run is not None else None

    card_data = ModelCardData(
        model_name=model_id.rsplit("/", 1)[-1],
        license=license,
        library_name="transformers",
        pipeline_tag="image-classification" if is_classifier else "image-feature-extraction",
        tags=[config.model_type, "self-supervised-learning", "denoising-autoencoder"],
        base_model=base_model,  # the Hub shows it in the model tree
        datasets=[data["dataset"]] if is_hub_name(data.get("dataset")) else None,
        eval_results=[_eval_result(entry) for entry in listed if entry["checkpoint"] == "."] or None,
    )
    return ModelCard.from_template(
        card_data,
        template_str=TEMPLATE.read_text(encoding="utf-8"),
        model_id=model_id,
        location=repo_id or (name if folder.is_absolute() else folder.as_posix()),
        trust=", trust_remote_code=True" if has_code else "",
        config=config,
        family=family,
        size=_size_name(config),
        target=TARGETS.get(getattr(config, "prediction_target", "")),
        num_tokens=getattr(config, "num_patches", "N"),
        is_classifier=is_classifier,
        is_denoiser=is_denoiser,
        encoder=base_model or (run.name if run is not None else None),
        denoising_timestep=config.num_train_timesteps // 4,
        fine_tuned=recipe.get("finetuning"),
        num_labels=config.num_labels,
        image_mode="L" if config.num_channels == 1 else "RGB",
        parameters=_count_parameters(folder),
        data=data,
        dataset_line=_dataset_line(data),
        recipe_text=recipe_text,
        cost=_cost(run or folder),
        tables=_tables(groups),
        pictures=_pictures(folder),
    )


def _eval_result(entry: dict[str, Any]) -> EvalResult:
    """Convert an entry of results.json for the Hub's model-index, with the protocol as the metric's arguments."""
    dataset = _public_name(entry["dataset"])
    keys = ("protocol", "seed", "seeds", "stderr", "n")
    arguments: dict[str, Any] = {key: entry[key] for key in keys if key in entry}
    return EvalResult(
        task_type=TASKS.get(entry["protocol"]["name"], "image-classification"),
        dataset_type=dataset,
        dataset_name=dataset,
        dataset_split=entry["split"],
        metric_type=entry["metric"],
        metric_name=f"{entry['metric']} ({entry['protocol']['name']})",
        metric_value=entry["value"],
        metric_args=arguments,
    )


def _count_parameters(folder: str | os.PathLike[str]) -> int:
    """Count the values in a folder's safetensors weights, including buffers such as the PCA's."""
    total = 0
    for path in Path(folder).glob("model*.safetensors"):
        with safe_open(path, framework="pt") as tensors:
            total += sum(math.prod(tensors.get_slice(name).get_shape()) for name in list(tensors.keys()))
    return total


def is_rejected(entry: dict[str, Any]) -> bool:
    """Tell whether an entry of results.json is a cell that a grid search did not choose; cards leave those out."""
    return entry["protocol"].get("search") == "grid" and not entry.get("chosen", True)


def is_hub_name(name: str | None) -> bool:
    """Tell whether a name is "namespace/name" on the Hub, and no folder, file or glob on this machine."""
    return name is not None and re.fullmatch(r"[\w-]+/[\w.-]+", name) is not None and not os.path.exists(name)


def _merge_metadata(present: Any, new: Any) -> None:
    """Update the metadata of a card by hand: results of the same kind are replaced, tags are added."""
    fresh = new.eval_results or []
    kept = [old for old in present.eval_results or [] if not any(old.is_equal_except_value(n) for n in fresh)]
    present.eval_results = kept + fresh or None
    if present.get("model_name") is None:
        present.model_name = new.model_name
    present.tags = list(dict.fromkeys([*(present.get("tags") or []), *new.tags]))
    for key in ("license", "library_name", "pipeline_tag", "datasets"):
        if present.get(key) is None:
            present[key] = new.get(key)


def _encoder_run(folder: Path) -> Path | None:
    """Return the run that a probe's classifier lies in, or `None` for a folder with a recipe of its own."""
    run = folder.resolve().parent
    inside = (run / "recipe.yaml").is_file() and (run / "config.json").is_file()
    return run if inside and not (folder / "recipe.yaml").is_file() else None


def _is_at(entry: dict[str, Any], place: tuple[Any, int]) -> bool:
    """Tell whether a result was measured at a layer and time step."""
    return (entry["protocol"].get("layer"), entry["protocol"].get("timestep")) == place


def _size_name(config: Any) -> str | None:
    """Return the name of an l-DAE's size, if it has one."""
    fields = ("hidden_size", "num_hidden_layers", "decoder_num_hidden_layers", "num_attention_heads")
    shape = tuple(getattr(config, field, None) for field in fields)
    return next((name for name, size in MODEL_SIZES.items() if size == shape), None)


def _public_name(dataset: str) -> str:
    """Return a data set's name without folders of this machine."""
    return dataset if dataset == "digits" or is_hub_name(dataset) else Path(dataset.rstrip("/*")).name or dataset


def _dataset_line(data: dict[str, Any]) -> str:
    name = data.get("dataset")
    if name == "digits":
        return "digits: the 1,797 images of handwritten digits that scikit-learn ships, as 16x16 RGB."
    if is_hub_name(name):
        return f"[{name}](https://huggingface.co/datasets/{name})."
    return f"A local data set, `{_public_name(str(name))}`."


def _cost(folder: Path) -> str:
    """Describe the training's cost, as far as metrics.jsonl records it."""
    records = read_metrics(folder)
    last = {key: value for record in records for key, value in record.items()}
    if peaks := [record["peak_memory_gib"] for record in records if "peak_memory_gib" in record]:
        last["peak_memory_gib"] = max(peaks)  # of all starts
    parts = [text.format(last[key]) for key, text in COSTS.items() if key in last]
    return "; ".join(parts) + "." if parts else "Not recorded in this folder."


def _group_results(results: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Group results alike but for value, layer, time step and checkpoint, of kinds with more than `SHOWN_ROWS`."""
    groups: dict[str, list[dict[str, Any]]] = {}  # in the order of their first entries
    rows = Counter(entry["protocol"]["name"] for entry in results)
    for i, entry in enumerate(results):
        protocol = {key: value for key, value in entry["protocol"].items() if key not in ("layer", "timestep")}
        same = {key: entry.get(key) for key in ("metric", "dataset", "split", "n", "seed", "seeds")}
        same["checkpoint"] = re.sub(r"images-\d+$", "images-*", entry["checkpoint"])
        is_large = rows[protocol["name"]] > SHOWN_ROWS
        key = json.dumps([protocol, same], sort_keys=True, default=str) if is_large else str(i)
        groups.setdefault(key, []).append(entry)
    return list(groups.values())


def _tables(groups: list[list[dict[str, Any]]]) -> dict[str, list[list[str]]]:
    """Write the rows of a table for each kind of protocol; kNN and linear probes never share one."""
    tables: dict[str, list[list[str]]] = {}
    for group in groups:
        entry = group[0]
        protocol = {key: value for key, value in entry["protocol"].items() if value is not None}
        values = sorted(group, key=lambda each: each["value"])
        value = _value(entry) if len(group) == 1 else f"{_value(values[0])} to {_value(values[-1])}"
        if len(group) > 1:
            for key in ("layer", "timestep"):
                found = dict.fromkeys(each["protocol"].get(key) for each in group)
                if len(found) > 1:
                    protocol.pop(key, None)
                    protocol[f"{key}s"] = _ends(list(found))
            protocol["results"] = f"{len(group)}, each in results.json"
        checkpoints = list(dict.fromkeys(each["checkpoint"] for each in group))
        source = "this model" if entry["checkpoint"] == "." else Path(entry["checkpoint"]).name
        seeds = entry.get("seeds", entry.get("seed"))
        row = [
            entry["metric"],
            value,
            f"{_public_name(entry['dataset'])}, {entry['split']}",
            f"{entry['n']:,}" if "n" in entry else "",
            _ends(seeds) if isinstance(seeds, list) else str(seeds),
            source if len(checkpoints) == 1 else f"{len(checkpoints)} checkpoints of the run",
            ", ".join(f"{key} {value}" for key, value in protocol.items() if key != "name"),
        ]
        tables.setdefault(protocol["name"], []).append([str(cell).replace("|", "\\|") for cell in row])
    return tables


def _value(entry: dict[str, Any]) -> str:
    """Write a result's value with its standard error."""
    scale, unit, precision = (100, " %", ".2f") if entry["metric"] == "accuracy" else (1, "", ".4g")
    text = f"{scale * entry['value']:{precision}}{unit}"
    if entry.get("stderr") is not None:
        text += f" ± {scale * entry['stderr']:{'.2f' if scale == 100 else '.2g'}}"
    return text


def _ends(values: list[Any]) -> str:
    """Write a list: all of up to three values, or else their number, the first and the last."""
    if len(values) > 3:
        return f"{len(values)} ({values[0]} to {values[-1]})"
    return ", ".join(map(str, values))


def _pictures(folder: Path) -> list[tuple[str, str]]:
    paths = sorted(path for path in folder.glob("pictures/*") if path.suffix in (".png", ".jpg", ".gif", ".webp"))
    return [(path.stem.replace("_", " "), path.relative_to(folder).as_posix()) for path in paths]
