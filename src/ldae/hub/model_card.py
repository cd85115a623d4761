"""Model cards: what a run's folder says about itself, as a README.md with the Hub's metadata.

Everything in a card comes from the folder: config.json, recipe.yaml, metrics.jsonl, results.json and pictures/. A card
that was written or edited by hand is never overwritten.
"""

import json
import os
import re
from pathlib import Path
from typing import Any, Literal

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from safetensors import safe_open

from ldae.files import write_whole
from ldae.hub.upload import CARD_FILE, is_sealed_card, seal_card
from ldae.models.configuration_ddae import DDAEConfig
from ldae.models.configuration_ldae import MODEL_SIZES, LDAEConfig
from ldae.results import read_results


TEMPLATE = Path(__file__).with_name("model_card_template.md")
# What the Hub calls the task of a kind of result; the others are of classification.
TASKS = {"generation": "unconditional-image-generation", "alignment_uniformity": "image-feature-extraction"}
CONFIGS: dict[str, Any] = {"ldae": LDAEConfig, "ddae": DDAEConfig}
DEFAULT_LICENSE = "apache-2.0"
TARGETS = {
    "noise": "the noise",
    "latent": "the clean latents",
    "projected_image": "the clean image as far as its latents hold it",
    "image": "the clean image",
}


def write_model_card(
    folder: str | os.PathLike[str],
    *,
    repo_id: str | None = None,
    license: str | None = None,
    update_metadata: bool = False,
) -> Literal["written", "metadata", "kept"]:
    """Writes a run's README.md, unless a person wrote or edited the one that is there.

    Args:
        folder: a run's folder.
        repo_id: the Hub id that the card's title and code name. Default None: the folder's name.
        license: the weights' licence as the Hub spells it. Default None: the present card's, else "apache-2.0".
        update_metadata: whether a card that is kept gets the run's results and tags into its metadata block; its text
            and its other metadata stay. Default False.

    Returns:
        "written" for a new card or one of ours brought up to date, "metadata" where only the metadata block of a card
        written by hand changed, "kept" where such a card was left alone.

    Raises:
        ValueError: the folder has no config.json.
    """
    path = Path(folder) / CARD_FILE
    present = path.read_text(encoding="utf-8") if path.is_file() else None
    present_card = ModelCard(present, ignore_metadata_errors=True) if present is not None else None
    if license is None:
        license = present_card.data.get("license") if present_card is not None else None
    card = render_model_card(folder, repo_id=repo_id, license=license or DEFAULT_LICENSE)
    if present is None or present_card is None or is_sealed_card(present):
        write_whole(path, seal_card(str(card)))
        return "written"
    if not update_metadata:
        return "kept"
    _merge_metadata(present_card.data, card.data)
    write_whole(path, str(present_card))
    return "metadata"


def render_model_card(
    folder: str | os.PathLike[str], *, repo_id: str | None = None, license: str = DEFAULT_LICENSE
) -> ModelCard:
    """Renders a run's card from its files, without writing it.

    Args:
        folder: a run's folder.
        repo_id: the Hub id that the card's title and code name. Default None: the folder's name.
        license: the weights' licence as the Hub spells it. Default "apache-2.0".

    Returns:
        The card: its metadata with one model-index entry for each result, and its text.

    Raises:
        ValueError: the folder has no config.json, or it is neither an l-DAE's nor a DDAE's.
    """
    folder = Path(folder)
    config_path = folder / "config.json"
    if not config_path.is_file():
        raise ValueError(f"{folder} has no config.json; give a run's folder, or one that save_pretrained wrote")
    fields = json.loads(config_path.read_text(encoding="utf-8"))
    model_type = fields.get("model_type")
    if model_type not in CONFIGS:
        raise ValueError(
            f"{config_path} has model_type={model_type!r}; a card is rendered for {' and '.join(map(repr, CONFIGS))} alone. "
            "Write its README.md by hand and upload the folder with `hf upload`."
        )
    config = CONFIGS[model_type].from_dict(fields)
    is_classifier = any("Classification" in name for name in config.architectures or [])
    run = _encoder_run(folder) if is_classifier else None  # of a probe: its encoder's
    recipe_path = (run or folder) / "recipe.yaml"
    recipe_text = recipe_path.read_text(encoding="utf-8").strip() if recipe_path.is_file() else ""
    recipe = (yaml.safe_load(recipe_text) or {}) if recipe_text else {}
    data = recipe.get("data", {})
    results = read_results(folder) if run is None else _probe_results(run, config)
    results = [entry for entry in results if not passed_over(entry)]
    name = folder.resolve().name if run is None else f"{run.name}-{folder.resolve().name}"
    model_id = repo_id or name
    base_model = recipe.get("training", {}).get("push_to_hub") if run is not None else None

    card_data = ModelCardData(
        model_name=model_id.rsplit("/", 1)[-1],
        license=license,
        library_name="transformers",
        pipeline_tag="image-classification" if is_classifier else "image-feature-extraction",
        tags=[model_type, "self-supervised-learning", "denoising-autoencoder"],
        base_model=base_model,  # which the Hub shows as the tree of a family
        datasets=[data["dataset"]] if is_hub_name(data.get("dataset")) else None,
        # The model-index is this model's alone: the text's tables also hold the baselines that it was compared to.
        eval_results=[eval_result(entry) for entry in results if entry["checkpoint"] == "."] or None,
    )
    return ModelCard.from_template(
        card_data,
        template_str=TEMPLATE.read_text(encoding="utf-8"),
        model_id=model_id,
        config=config,
        **_describe_ldae(config) if model_type == "ldae" else _describe_ddae(config),
        is_classifier=is_classifier,
        is_denoiser=any("PreTraining" in name for name in config.architectures or []),
        encoder=base_model or (run.name if run is not None else None),
        denoising_timestep=config.num_train_timesteps // 4,
        fine_tuned=recipe.get("finetuning"),
        num_labels=config.num_labels,
        image_mode="L" if config.num_channels == 1 else "RGB",
        parameters=count_parameters(folder),
        data=data,
        dataset_line=_dataset_line(data),
        recipe_text=recipe_text,
        cost=_cost(run or folder),
        tables=_tables(results),
        pictures=_pictures(folder),
    )


def eval_result(entry: dict[str, Any]) -> EvalResult:
    """One entry of results.json as an entry of the Hub's model-index; its protocol travels as the metric's arguments."""
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


def count_parameters(folder: str | os.PathLike[str]) -> int:
    """Number of values in a folder's safetensors weights, buffers such as the PCA's included."""
    total = 0
    for path in Path(folder).glob("model*.safetensors"):
        with safe_open(path, framework="pt") as tensors:
            shapes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118 (no dict)
        for shape in shapes:
            size = 1
            for length in shape:
                size *= length
            total += size
    return total


def _merge_metadata(present: Any, new: Any) -> None:
    """Brings a hand-written card's metadata up to date: results of the same kind are replaced, tags are added."""
    fresh = new.eval_results or []
    kept = [old for old in present.eval_results or [] if not any(old.is_equal_except_value(n) for n in fresh)]
    present.eval_results = kept + fresh or None
    if present.get("model_name") is None:
        present.model_name = new.model_name
    present.tags = list(dict.fromkeys([*(present.get("tags") or []), *new.tags]))
    for key in ("license", "library_name", "pipeline_tag", "datasets"):
        if present.get(key) is None:
            present[key] = new.get(key)


def _describe_ldae(config: LDAEConfig) -> dict[str, Any]:
    """What the template says of an l-DAE beside its fields."""
    return {
        "size": _size_name(config),
        "target": TARGETS[config.prediction_target],
        "num_tokens": config.num_patches,
        "place": "patch",
    }


def _describe_ddae(config: DDAEConfig) -> dict[str, Any]:
    """What the template says of a DDAE beside its fields."""
    return {
        "num_tokens": "N",
        "place": "place of the map",
    }


def _encoder_run(folder: Path) -> Path | None:
    """The run that a probe's classifier, a folder inside it without a recipe of its own, was probed in; else None."""
    run = folder.resolve().parent
    inside = (run / "recipe.yaml").is_file() and (run / "config.json").is_file()
    return run if inside and not (folder / "recipe.yaml").is_file() else None


def passed_over(entry: dict[str, Any]) -> bool:
    """Whether an entry of results.json is a cell that a grid search did not choose: a card has no room for all of them."""
    return entry["protocol"].get("search") == "grid" and not entry.get("chosen", True)


def _probe_results(run: Path, config: LDAEConfig | DDAEConfig) -> list[dict[str, Any]]:
    """What the probe that became a classifier reached: those of the run's results that it was chosen for, as its own."""
    layer = config.feature_layer or config.num_hidden_layers if config.model_type == "ldae" else config.feature_layer
    place = (layer, config.feature_timestep)
    return [
        entry
        for entry in read_results(run)
        if entry.get("chosen") and entry["checkpoint"] == "."
        if (entry["protocol"].get("layer"), entry["protocol"].get("timestep")) == place
    ]


def _size_name(config: LDAEConfig) -> str | None:
    fields = ("hidden_size", "num_hidden_layers", "decoder_num_hidden_layers", "num_attention_heads")
    shape = tuple(getattr(config, field) for field in fields)
    return next((name for name, size in MODEL_SIZES.items() if size == shape), None)


def is_hub_name(name: str | None) -> bool:
    """Whether a recipe's dataset, or a checkpoint, is "namespace/name" on the Hub: no folder, file, glob or the digits."""
    return name is not None and re.fullmatch(r"[\w-]+/[\w.-]+", name) is not None and not os.path.exists(name)


def _public_name(dataset: str) -> str:
    """A data set's name without the folders of the machine it lay on."""
    return dataset if dataset == "digits" or is_hub_name(dataset) else Path(dataset.rstrip("/*")).name or dataset


def _dataset_line(data: dict[str, Any]) -> str:
    name = data.get("dataset")
    if name == "digits":
        text = "digits: the 1,797 images of handwritten digits that scikit-learn ships, given as 16x16 RGB."
    elif is_hub_name(name):
        text = f"[{name}](https://huggingface.co/datasets/{name})."
    else:
        text = f"A data set of one's own, `{_public_name(str(name))}`."
    return text


def _cost(folder: Path) -> str:
    """What metrics.jsonl says of the training: images, time, hardware, speed, memory; only what is there."""
    path = folder / "metrics.jsonl"
    last: dict[str, Any] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            last.update(json.loads(line))
        except ValueError:  # a line that a kill cut short
            continue
    shown = {
        "images": "{:,} images seen",
        "seconds": "{:,.0f} seconds of training",
        "hardware": "on {}",
        "processes": "processes: {}",
        "images_per_second": "{:,.0f} images a second at the end",
        "peak_memory_gib": "{:.1f} GiB of memory at most",
        "loss": "last training loss {:.4g}",
        "weights": "weights: {}",
    }
    parts = [text.format(last[key]) for key, text in shown.items() if key in last]
    return "; ".join(parts) + "." if parts else "Not recorded in this folder."


def _tables(results: list[dict[str, Any]]) -> dict[str, list[list[str]]]:
    """The results by kind of protocol: a kNN and a linear probe never share a table."""
    tables: dict[str, list[list[str]]] = {}
    for entry in results:
        protocol = dict(entry["protocol"])
        percent = entry["metric"] == "accuracy"
        value = f"{100 * entry['value']:.2f} %" if percent else f"{entry['value']:.4g}"
        if entry.get("stderr") is not None:
            value += f" \u00b1 {100 * entry['stderr']:.2f}" if percent else f" \u00b1 {entry['stderr']:.2g}"
        seeds = entry.get("seeds", entry.get("seed"))
        if isinstance(seeds, list) and len(seeds) > 3:
            seeds = f"{len(seeds)} ({seeds[0]} to {seeds[-1]})"
        kind = str(protocol.pop("name"))
        row = [
            entry["metric"],
            value,
            f"{_public_name(entry['dataset'])}, {entry['split']}",
            f"{entry['n']:,}" if "n" in entry else "",
            ", ".join(map(str, seeds)) if isinstance(seeds, list) else str(seeds),
            "this model" if entry["checkpoint"] == "." else Path(entry["checkpoint"]).name,
            ", ".join(f"{key} {value}" for key, value in protocol.items() if value is not None),
        ]
        tables.setdefault(kind, []).append([str(cell).replace("|", "\\|") for cell in row])
    return tables


def _pictures(folder: Path) -> list[tuple[str, str]]:
    paths = sorted(path for path in folder.glob("pictures/*") if path.suffix in (".png", ".jpg", ".gif", ".webp"))
    return [(path.stem.replace("_", " "), path.relative_to(folder).as_posix()) for path in paths]
