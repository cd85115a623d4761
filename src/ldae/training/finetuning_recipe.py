"""Recipes of fine-tuning runs: a checkpoint, the images, the regularisation and the budget, with all defaults."""

import dataclasses
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ldae.options import Option, build, convert_fields, describe, plain
from ldae.places import find_data
from ldae.sections import DataConfig, FineTuningConfig, TokenizerConfig, TrainingConfig
from ldae.training.recipe import (
    Recipe,
    has_derived_warmup,
    model_fields,
    model_options,
    override,
    read_sections,
)


if TYPE_CHECKING:
    from ldae.data import ImageSource


EPOCHS = 100  # of App. B
# App. B: AdamW at 4e-3 for a batch of 1024. What it does not say (betas, warm-up, no clipping) is as in MAE, which it
# follows.
TRAINING_DEFAULTS: dict[str, Any] = {
    "total_batch_size": 1024,
    "base_learning_rate": 1e-3,
    "weight_decay": 0.05,
    "adam_betas": (0.9, 0.999),
    "max_grad_norm": None,
    "ema_decay": 0.9999,
}
DATA_DEFAULTS: dict[str, Any] = {"random_resized_crop": True, "crop_scale": (0.08, 1.0)}
# Defaults that follow from the checkpoint or the budget, in words.
DERIVED = {
    "images": "100 epochs",
    "warmup_images": "a twentieth of the budget",
    "dataset": "that of the checkpoint's recipe.yaml",
    "horizontal_flip": "as in the checkpoint's recipe.yaml, or true",
    **dict.fromkeys(("num_hidden_layers", "feature_timestep", "project_clean_input"), "the checkpoint's"),
    "feature_layer": "the checkpoint's; for a DDAE the name of a tap",
}
UNUSED = ("geometric_augmentation", "latent_cache", "probe_train_examples")  # only for pre-training
# Fields of the model that may be changed: where it ends, and how it sees a clean image.
CUTS = {
    "ldae": ("num_hidden_layers", "feature_layer", "feature_timestep", "project_clean_input"),
    "ddae": ("feature_layer", "feature_timestep"),
}
_SECTIONS: dict[str, Any] = {"data": DataConfig, "finetuning": FineTuningConfig, "training": TrainingConfig}


@dataclass
class FineTuningRecipe(Recipe):
    """A [`Recipe`] whose model is an image classifier, with the section `finetuning`."""

    finetuning: FineTuningConfig
    config: Any  # the classifier's, with the names of the classes
    has_head: bool  # the checkpoint's own head is kept

    @property
    def model_type(self) -> str:
        """Type of the model: `"ldae"` or `"ddae"`."""
        return self.config.model_type

    def model_config(self, **fields: Any) -> Any:
        """Return the configuration of the classifier."""
        return self.config

    def resolved(self) -> dict[str, Any]:
        """Return every field of every section as plain YAML values."""
        finetuning = dataclasses.asdict(self.finetuning)
        if Path(self.finetuning.checkpoint).is_dir() and self.training.output_dir is not None:
            finetuning["checkpoint"] = os.path.relpath(self.finetuning.checkpoint, self.training.output_dir)
        sections = {
            "model": {"model_type": self.model_type}
            | {name: getattr(self.config, name) for name in model_fields(self.model_type)},
            "data": _used(dataclasses.asdict(self.data)),
            "finetuning": finetuning,
            "training": _used(dataclasses.asdict(self.training)),
        }
        return yaml.safe_load(yaml.safe_dump(plain(sections)))


def finetuning_options() -> dict[str, list[Option]]:
    """List the fields of a fine-tuning recipe by section."""
    hidden = (*UNUSED, "checkpoint", "select_features")
    cuts = {option.name: option for model_type in ("ddae", "ldae") for option in model_options(model_type)}
    sections = {"model": [cuts[name] for name in CUTS["ldae"]]}
    sections |= {name: [o for o in describe(kind) if o.name not in hidden] for name, kind in _SECTIONS.items()}
    return {name: [_as_of_fine_tuning(option) for option in found] for name, found in sections.items()}


def _as_of_fine_tuning(option: Option) -> Option:
    """Give a field of a pre-training the default that it has in a fine-tuning."""
    text = re.sub(r" \(App\. A: [^)]*\)", "", option.help)
    if option.name in DERIVED:
        return replace(option, default=None, help=f"{text.rstrip('.')}; by default {DERIVED[option.name]}.")
    return replace(option, default=(TRAINING_DEFAULTS | DATA_DEFAULTS).get(option.name, option.default), help=text)


def load_finetuning_recipe(
    checkpoint: str | os.PathLike[str],
    path: str | os.PathLike[str] | None = None,
    overrides: dict[str, Any] | None = None,
    *,
    epochs: int | None = None,
) -> FineTuningRecipe:
    """Read the recipe of a fine-tuning run.

    Args:
        checkpoint (`str` or path): Folder or Hub id of the model that is fine-tuned.
        path (`str` or path, *optional*): A YAML file with the sections `data`, `finetuning` and `training`, such as
            the recipe.yaml of another fine-tuning run.
        overrides (`dict`, *optional*): Values by field name; text is read as YAML. Of the model's fields, only those
            in `CUTS`.
        epochs (`int`, *optional*): Budget in passes over the training images, instead of `images`; 100 if neither is
            given.

    Returns:
        [`FineTuningRecipe`], checked, with the budget in images. The data set, its columns and its flips are by
        default those of the checkpoint's own recipe.yaml; the crop keeps 8 to 100 % of the area.

    Raises:
        ValueError: For an unknown field, a value out of range, a checkpoint that cannot be fine-tuned, or images
            without classes.
    """
    checkpoint = str(checkpoint)
    base = _open_config(checkpoint)
    sections = _sections(base, path, overrides or {})
    data = build(DataConfig, _data_fields(checkpoint, sections["data"]), "data")
    fine = build(FineTuningConfig, sections["finetuning"] | {"checkpoint": checkpoint}, "finetuning")
    from ldae.data import open_probe_images

    source = open_probe_images(data)[0]
    names = class_names(source)
    kept = _keeps_head(base, fine, names, sections["model"])
    chosen = dict(sections["training"])
    if epochs is not None and "images" in chosen:
        raise ValueError(f"epochs={epochs} and images={chosen['images']} are both given; give one of them.")
    if "images" not in chosen:
        chosen["images"] = _images(source, EPOCHS if epochs is None else epochs)
    if "output_dir" not in chosen and Path(checkpoint).is_dir():
        chosen["output_dir"] = str(Path(checkpoint) / ("from_scratch" if fine.from_scratch else "finetune"))
    training = build(TrainingConfig, TRAINING_DEFAULTS | chosen, "training")
    if "warmup_images" not in chosen:
        training.warmup_images = training.images // 20  # 5 of 100 epochs
    return FineTuningRecipe(
        model={},
        data=data,
        tokenizer=TokenizerConfig(),
        training=training,
        finetuning=fine,
        config=_classifier_config(checkpoint, base, sections["model"], names),
        has_head=kept,
    )


def class_names(source: "ImageSource") -> list[str]:
    """Return the names of a source's classes, or their numbers; refuse a source that has none."""
    if source.label_column is None:
        raise ValueError(
            f"{source.description} has no label column, which a classifier needs; name it with label_column."
        )
    if source.class_names is not None:
        return source.class_names
    if source.streaming:
        raise ValueError(
            f"the classes of {source.description} have no names, and a stream does not say how many there are; give "
            "--streaming false, or write the data set with a ClassLabel."
        )
    from ldae.data.rows import read_labels

    largest = max(read_labels(source))
    if largest < 0:
        raise ValueError(f"{source.description} has no labels in its column {source.label_column!r}; name another.")
    return [str(index) for index in range(largest + 1)]


def _sections(base: Any, path: Any, overrides: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Read and override the sections, and refuse unknown fields."""
    sections = read_sections(path, extra=("finetuning",))
    sections.setdefault("finetuning", {})
    owners = {f.name: section for section, kind in _SECTIONS.items() for f in dataclasses.fields(kind)}
    owners = {name: section for name, section in owners.items() if name not in (*UNUSED, "checkpoint")}
    owners |= dict.fromkeys(CUTS[base.model_type], "model")
    if sections["tokenizer"]:
        raise ValueError("fine-tuning has no section 'tokenizer': the checkpoint brings its own; leave it out.")
    sections["finetuning"].pop("checkpoint", None)  # that of the run whose recipe.yaml this is
    if has_derived_warmup(sections["training"]):
        del sections["training"]["warmup_images"]  # it follows the budget, which may be overridden
    free = (*CUTS[base.model_type], *(["hidden_size"] if base.model_type == "ddae" else []))  # depends on the tap
    for name, value in sections["model"].items():  # a run's recipe.yaml has all of them
        if name not in free and value != getattr(base, name, None):
            raise ValueError(
                f"model.{name}={value!r} of {path} is not the checkpoint's, which is {getattr(base, name, None)!r}; "
                "leave the section 'model' out."
            )
    sections["model"] = {name: value for name, value in sections["model"].items() if name in CUTS[base.model_type]}
    override(sections, overrides, owners, "fine-tuning")
    hints = {option.name: option.hint for option in model_options(base.model_type)}
    sections["model"] = convert_fields(sections["model"], hints, "model")
    return sections


def _open_config(checkpoint: str) -> Any:
    from ldae.checkpoints import open_config

    config: Any = open_config(checkpoint)
    if config.model_type not in CUTS:
        raise ValueError(
            f"checkpoint={checkpoint!r} is a {config.model_type}; fine-tuning here is for {' and '.join(CUTS)}. "
            "Other models have transformers' own examples."
        )
    return config


def _data_fields(checkpoint: str, given: dict[str, Any]) -> dict[str, Any]:
    """Put the given fields over those of the checkpoint's recipe, if that reads the same data set."""
    folder = Path(checkpoint)
    folder = folder.parent if folder.name == "linear_probe" else folder  # a probe lies inside the run's folder
    file = folder / "recipe.yaml"
    own = read_sections(file, extra=("finetuning",))["data"] if file.is_file() else {}
    if given.get("dataset", own.get("dataset")) != own.get("dataset"):
        own = {}
    if "dataset" not in {**own, **given}:
        raise ValueError(f"dataset is missing, and there is no {file} to take it from; give --dataset.")
    if "dataset" not in given:
        own["dataset"] = find_data(own["dataset"], file)
    return {"horizontal_flip": True, **_used(own), **DATA_DEFAULTS, **given}


def _used(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in UNUSED}


def _images(source: "ImageSource", epochs: int) -> int:
    if epochs < 1:
        raise ValueError(f"epochs={epochs} must be 1 or more.")
    if source.num_examples is None:
        raise ValueError(f"images is missing, and the size of {source.description} is unknown; give --images.")
    return epochs * source.num_examples


def _keeps_head(base: Any, fine: FineTuningConfig, names: list[str], cut: dict[str, Any]) -> bool:
    """Return true if the checkpoint is a classifier of the same classes and its head is kept."""
    is_classifier = any("ImageClassification" in name for name in base.architectures or [])
    if not is_classifier or fine.new_head or fine.from_scratch:
        return False
    own = [base.id2label[index] for index in sorted(base.id2label)]
    if own != names:
        raise ValueError(
            f"checkpoint={fine.checkpoint!r} is a classifier of {len(own)} classes ({', '.join(own[:3])}, ...), and "
            f"the images have {len(names)} ({', '.join(names[:3])}, ...); give --new_head true to begin with a new "
            "head."
        )
    for name, value in cut.items():
        if value != getattr(base, name):
            raise ValueError(
                f"{name}={value!r} does not fit the head of checkpoint={fine.checkpoint!r}, which was trained at "
                f"{name}={getattr(base, name)!r}; leave it out, or give --new_head true to begin with a new head."
            )
    return True


def _classifier_config(checkpoint: str, base: Any, cut: dict[str, Any], names: list[str]) -> Any:
    """Return the checkpoint's configuration with the fields of `cut` changed and the classes named."""
    if base.model_type == "ldae":
        depth = cut.get("num_hidden_layers", base.num_hidden_layers)
        if depth > base.total_num_hidden_layers:
            raise ValueError(
                f"num_hidden_layers={depth} must be at most {base.total_num_hidden_layers}, the checkpoint's blocks."
            )
        default = None if "num_hidden_layers" in cut else base.feature_layer
        layer = cut.get("feature_layer", default) or depth
        if not 1 <= layer <= depth:
            raise ValueError(f"feature_layer={layer} must be from 1 to num_hidden_layers={depth}.")
        cut = {**cut, "num_hidden_layers": layer, "feature_layer": None}
    elif cut.get("feature_layer", base.feature_layer) != base.feature_layer:
        cut = {**cut, "hidden_size": None}  # belongs to the checkpoint's own tap; the model fills in the new one's
    classes = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    config = type(base).from_pretrained(checkpoint, **cut, **classes)
    if hasattr(config, "auto_map"):
        del config.auto_map  # names the checkpoint's copy of the code; the run's folder gets its own
    return config
