"""The recipe of a fine-tuning run: a checkpoint, the images, the regularisation and the budget, all defaults filled in."""

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from transformers import AutoConfig

import ldae  # noqa: F401 - registers the models with transformers
from ldae.data import DataConfig, ImageSource, open_probe_images
from ldae.training.options import TokenizerConfig, TrainingConfig
from ldae.training.recipe import Recipe, build_section, did_you_mean, model_fields, read_sections


EPOCHS = 100  # of App. B
# App. B: AdamW at 4e-3 for a batch of 1024. What it does not say (betas, warm-up, no clipping) is as in MAE, which it follows.
TRAINING_DEFAULTS: dict[str, Any] = {
    "total_batch_size": 1024,
    "base_learning_rate": 1e-3,
    "weight_decay": 0.05,
    "adam_betas": (0.9, 0.999),
    "max_grad_norm": None,
    "ema_decay": 0.9999,
}
DATA_DEFAULTS: dict[str, Any] = {"random_resized_crop": True, "crop_scale": (0.08, 1.0)}
UNUSED = ("geometric_augmentation", "latent_cache", "probe_train_examples")  # of pre-training alone
# What of the model can be chosen anew: where it ends, and how it sees a clean image.
CUTS = {
    "ldae": ("num_hidden_layers", "feature_layer", "feature_timestep", "project_clean_input"),
    "ddae": ("feature_layer", "feature_timestep"),
}


@dataclass
class FineTuningConfig:
    """
    The `finetuning:` section of a recipe. Defaults are those of the l-DAE paper (App. B).

    Args:
        checkpoint: What is fine-tuned: a folder or Hub id of an l-DAE, a DDAE, or a saved probe. In a run's recipe.yaml a
            folder is written as it is seen from there.
        from_scratch: Whether the network begins untrained, for comparison; its tokenizer or autoencoder stays.
        new_head: Whether the head of a saved probe or classifier is replaced by a new one.
        frozen_blocks: Blocks at the beginning, with the embeddings before them, that do not train.
        lora_rank: Rank of LoRA factors, which then train in the place of the encoder's weights; `None` trains these.
        layer_decay: Factor of the learning rate from one block to the one before it; `None` is 0.85 (App. B for ViT-B;
            0.65 for ViT-L), and 1 with from_scratch or lora_rank.
        drop_path: Share of the residual branches of the last block that an example leaves out; it rises linearly from 0
            at the first.
        mixup, cutmix: Their Beta distributions' parameter; 0 for none.
        rand_augment: Magnitude of RandAugment, from 0 to 10, with a standard deviation of 0.5; `None` for none.
        label_smoothing: Share of the target that is spread over all classes.
    """

    checkpoint: str
    from_scratch: bool = False
    new_head: bool = False
    frozen_blocks: int = 0
    lora_rank: int | None = None
    layer_decay: float | None = None
    drop_path: float = 0.1
    mixup: float = 0.8
    cutmix: float = 1.0
    rand_augment: float | None = 9.0
    label_smoothing: float = 0.1

    def __post_init__(self) -> None:
        if self.layer_decay is None:
            self.layer_decay = 1.0 if self.from_scratch or self.lora_rank else 0.85
        rules = [
            ("frozen_blocks", self.frozen_blocks >= 0, "0 or more"),
            ("lora_rank", self.lora_rank is None or self.lora_rank > 0, "1 or more, or null"),
            ("layer_decay", 0 < self.layer_decay <= 1, "above 0 and at most 1"),
            ("drop_path", 0 <= self.drop_path < 1, "from 0 to below 1"),
            ("mixup", self.mixup >= 0, "0 or more"),
            ("cutmix", self.cutmix >= 0, "0 or more"),
            ("rand_augment", self.rand_augment is None or 0 <= self.rand_augment <= 10, "from 0 to 10, or null"),
            ("label_smoothing", 0 <= self.label_smoothing < 1, "from 0 to below 1"),
        ]
        for name, holds, allowed in rules:
            if not holds:
                raise ValueError(f"{name}={getattr(self, name)!r} is not possible; it must be {allowed}.")
        for name in ("frozen_blocks", "lora_rank"):
            if self.from_scratch and getattr(self, name):
                raise ValueError(
                    f"{name}={getattr(self, name)} is not possible with from_scratch=true: what does not train has to be "
                    "trained already. Leave one of them out."
                )


@dataclass
class FineTuningRecipe(Recipe):
    """A [`Recipe`] whose model is an image classifier, with the section `finetuning`."""

    finetuning: FineTuningConfig
    config: Any  # of the classifier, with the names of the classes
    has_head: bool  # whether the checkpoint's own head is kept

    @property
    def model_type(self) -> str:
        """What is fine-tuned: `"ldae"` or `"ddae"`."""
        return self.config.model_type

    def model_config(self, **fields: Any) -> Any:
        """The configuration of the classifier."""
        return self.config

    def resolved(self) -> dict[str, Any]:
        """Every field of every section, as plain YAML values."""
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
        return yaml.safe_load(yaml.safe_dump(_plain(sections)))


def load_finetuning_recipe(
    checkpoint: str | os.PathLike[str],
    path: str | os.PathLike[str] | None = None,
    overrides: dict[str, Any] | None = None,
    *,
    epochs: int | None = None,
) -> FineTuningRecipe:
    """
    The recipe of a fine-tuning run.

    Args:
        checkpoint (`str` or path): What is fine-tuned: a folder or a Hub id.
        path (`str` or path, *optional*): A YAML file with the sections `data`, `finetuning` and `training`, such as the
            recipe.yaml of another fine-tuning run.
        overrides (`dict`, *optional*): Values by bare field name; text is read as YAML. Of the model, where it ends
            and how it sees a clean image: `feature_layer`, `feature_timestep`, and of an l-DAE `num_hidden_layers` and
            `project_clean_input`.
        epochs (`int`, *optional*): Budget in passes over the training images, in the place of `images`; 100 where neither
            is given.

    Returns:
        [`FineTuningRecipe`], checked, with the budget in images. The data set, its columns and its flips are by default those of the
        checkpoint's own recipe.yaml; the crop keeps 8 to 100 % of the area.

    Raises:
        ValueError: for an unknown field, a value that is not possible, a checkpoint that cannot be fine-tuned, or images
            without classes.
    """
    checkpoint = str(checkpoint)
    overrides = {k: yaml.safe_load(v) if isinstance(v, str) else v for k, v in (overrides or {}).items()}
    base = _open_config(checkpoint)
    sections = _sections(base, path, overrides)
    data = build_section(DataConfig, _data_fields(checkpoint, sections["data"]), "data")
    fine = build_section(FineTuningConfig, sections["finetuning"] | {"checkpoint": checkpoint}, "finetuning")
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
    training = build_section(TrainingConfig, TRAINING_DEFAULTS | chosen, "training")
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


def class_names(source: ImageSource) -> list[str]:
    """
    Names of the classes of a source; numbers, where it has no names.

    Raises:
        ValueError: where it has no labels, or is a stream whose labels have no names.
    """
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
    labels = source.dataset.with_format(None)[source.label_column]
    return [str(index) for index in range(max(label for label in labels if label is not None) + 1)]


def _sections(base: Any, path: Any, overrides: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Fields by section, each of them known."""
    sections = read_sections(path, extra=("finetuning",))
    sections.setdefault("finetuning", {})
    kinds: dict[str, Any] = {"data": DataConfig, "finetuning": FineTuningConfig, "training": TrainingConfig}
    owners = {f.name: section for section, kind in kinds.items() for f in dataclasses.fields(kind)}
    owners = {name: section for name, section in owners.items() if name not in (*UNUSED, "checkpoint")}
    owners |= dict.fromkeys(CUTS[base.model_type], "model")
    if sections["tokenizer"]:
        raise ValueError("the section 'tokenizer' is not possible in fine-tuning: the checkpoint has its tokenizer.")
    sections["finetuning"].pop("checkpoint", None)  # of the run that the file comes from
    free = (*CUTS[base.model_type], *(["hidden_size"] if base.model_type == "ddae" else []))  # follows from the tap
    for name, value in sections["model"].items():  # a run's recipe.yaml says all of them
        if name not in free and value != getattr(base, name, None):
            raise ValueError(
                f"model.{name}={value!r} of {path} is not the checkpoint's, which is {getattr(base, name, None)!r}; leave "
                "the section 'model' out."
            )
    sections["model"] = {name: value for name, value in sections["model"].items() if name in CUTS[base.model_type]}
    for name, value in overrides.items():
        if name not in owners:
            raise ValueError(f"--{name} is no field of fine-tuning{did_you_mean(name, owners)}")
        sections[owners[name]][name] = value
    for section in kinds:
        for name in sections[section]:
            if owners.get(name) != section:
                known = [other for other, owner in owners.items() if owner == section]
                raise ValueError(f"{section}.{name} is no field of fine-tuning{did_you_mean(name, known)}")
    return sections


def _open_config(checkpoint: str) -> Any:
    try:
        config = AutoConfig.from_pretrained(checkpoint)
    except (OSError, ValueError) as error:
        raise ValueError(f"checkpoint={checkpoint!r} cannot be loaded: {error}") from error
    if config.model_type not in CUTS:
        raise ValueError(
            f"checkpoint={checkpoint!r} is a {config.model_type}; fine-tuning here is for {' and '.join(CUTS)}. "
            "Other models have transformers' own examples."
        )
    return config


def _data_fields(checkpoint: str, given: dict[str, Any]) -> dict[str, Any]:
    """The fields given, over those of the checkpoint's recipe where it is of the same data set."""
    folder = Path(checkpoint)
    folder = folder.parent if folder.name == "linear_probe" else folder  # a probe lies inside the run's folder
    file = folder / "recipe.yaml"
    own = read_sections(file, extra=("finetuning",))["data"] if file.is_file() else {}
    if given.get("dataset", own.get("dataset")) != own.get("dataset"):
        own = {}
    if "dataset" not in {**own, **given}:
        raise ValueError(f"dataset is missing, and there is no {file} to take it from; give --dataset.")
    return {"horizontal_flip": True, **_used(own), **DATA_DEFAULTS, **given}


def _used(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in UNUSED}


def _images(source: ImageSource, epochs: int) -> int:
    if epochs < 1:
        raise ValueError(f"epochs={epochs} is not possible; it must be 1 or more.")
    if source.num_examples is None:
        raise ValueError(f"images is missing: how many {source.description} has is not known; give --images.")
    return epochs * source.num_examples


def _keeps_head(base: Any, fine: FineTuningConfig, names: list[str], cut: dict[str, Any]) -> bool:
    """Whether the checkpoint is a classifier of these very classes, whose head is to be kept."""
    is_classifier = any("ImageClassification" in name for name in base.architectures or [])
    if not is_classifier or fine.new_head or fine.from_scratch:
        return False
    own = [base.id2label[index] for index in sorted(base.id2label)]
    if own != names:
        raise ValueError(
            f"checkpoint={fine.checkpoint!r} is a classifier of {len(own)} classes ({', '.join(own[:3])}, ...), and the "
            f"images have {len(names)} ({', '.join(names[:3])}, ...); give --new_head true to begin with a new head."
        )
    for name, value in cut.items():
        if value != getattr(base, name):
            raise ValueError(
                f"{name}={value!r} is not possible with the head of checkpoint={fine.checkpoint!r}, which belongs to "
                f"{name}={getattr(base, name)!r}; leave it out, or give --new_head true to begin with a new head."
            )
    return True


def _classifier_config(checkpoint: str, base: Any, cut: dict[str, Any], names: list[str]) -> Any:
    """The checkpoint's configuration, cut where it is asked for, with the classes named."""
    if base.model_type == "ldae":
        depth = cut.get("num_hidden_layers", base.num_hidden_layers)
        if depth > base.total_num_hidden_layers:
            raise ValueError(
                f"num_hidden_layers={depth} is not possible; the checkpoint has {base.total_num_hidden_layers} blocks."
            )
        default = None if "num_hidden_layers" in cut else base.feature_layer
        layer = cut.get("feature_layer", default) or depth
        if not 1 <= layer <= depth:
            raise ValueError(f"feature_layer={layer} is not possible; it must be from 1 to num_hidden_layers={depth}.")
        cut = {**cut, "num_hidden_layers": layer, "feature_layer": None}
    elif cut.get("feature_layer", base.feature_layer) != base.feature_layer:
        cut = {**cut, "hidden_size": None}  # of the checkpoint's own tap; the model writes that of this one
    classes = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    config = type(base).from_pretrained(checkpoint, **cut, **classes)
    if hasattr(config, "auto_map"):
        del config.auto_map  # names the checkpoint's copy of the code; the run's folder gets its own
    return config


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
