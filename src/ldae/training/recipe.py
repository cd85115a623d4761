"""Recipes: one YAML file that says the model, the data and the budget, and command-line values that override it."""

import dataclasses
import difflib
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ldae.data import DataConfig
from ldae.models.configuration_ldae import LDAEConfig


# The paper's choices: the fields that LDAEConfig itself declares.
MODEL_FIELDS = tuple(name for name in LDAEConfig.__annotations__ if not name.startswith("_"))

# What may change between two starts of one run, because no trained number depends on it.
FREE_FIELDS = frozenset(
    "output_dir images micro_batch_size num_workers log_every_images checkpoint_every_images keep_checkpoints "
    "probe_every_images probe_train_examples probe_eval_examples report_to push_to_hub hub_private cache_dir compile "
    "activation_checkpointing".split()
)


@dataclass
class TrainingConfig:
    """
    The `training:` section of a recipe. Lengths are in images seen, never in epochs or steps.

    Args:
        output_dir: The run's folder.
        images: Budget: images to see in all.
        total_batch_size: Images in an optimizer step, over all processes and accumulated micro-batches.
        micro_batch_size: Images in one forward on one device; `None` is the whole of its share.
        base_learning_rate: Peak learning rate for a total batch of 256; the peak is this times total_batch_size / 256
            (App. A: 1e-4).
        warmup_images: Images over which the learning rate rises linearly from 0; then it falls as a half-cycle cosine.
        weight_decay: Of AdamW (App. A: 0).
        adam_betas: Of AdamW. The paper does not give them; these are the customary ones of masked autoencoders.
        max_grad_norm: Gradients are clipped to this norm; the paper does not say whether it does.
        mixed_precision: `no` or `bf16` (autocast; weights, schedule and loss stay in float32).
        compile: Whether to compile the model (`torch.compile`, fullgraph).
        activation_checkpointing: Whether blocks are computed again in the backward pass, to save memory.
        ema_decay: Decay of an exponential moving average of the weights, which is then what is exported; `None` for
            none. The paper does not say whether it has one.
        seed: Of initial weights, order of the data, augmentation, time steps and noise.
        tokenizer: Folder of a fitted latent tokenizer (a `train_tokenizer` folder or a run); `None` fits one first.
        tokenizer_images: Images that the latent tokenizer is fitted on.
        log_every_images: Interval of lines in metrics.jsonl.
        checkpoint_every_images: Interval of checkpoints; `None` is a tenth of the budget.
        keep_checkpoints: How many checkpoints stay.
        probe_every_images: Interval of the online probe (kNN and ridge) where labels exist; `None` is a tenth of the
            budget, 0 is never.
        probe_train_examples, probe_eval_examples: Size of the fixed subset that the online probe sees.
        report_to: Accelerate's trackers, by name: `tensorboard`, `trackio`, `wandb`, ...
        push_to_hub: Hub repository that receives the folder at checkpoints and at the end; `None` for none.
        hub_private: Whether a repository that has to be created is private.
    """

    output_dir: str | None = None
    images: int = 1_000_000
    total_batch_size: int = 256
    micro_batch_size: int | None = None
    base_learning_rate: float = 1e-4
    warmup_images: int = 0
    weight_decay: float = 0.0
    adam_betas: tuple[float, float] = (0.9, 0.95)
    max_grad_norm: float | None = 1.0
    mixed_precision: str = "no"
    compile: bool = False
    activation_checkpointing: bool = False
    ema_decay: float | None = None
    seed: int = 0
    tokenizer: str | None = None
    tokenizer_images: int = 50_000
    log_every_images: int = 10_000
    checkpoint_every_images: int | None = None
    keep_checkpoints: int = 2
    probe_every_images: int | None = None
    probe_train_examples: int = 5_000
    probe_eval_examples: int = 1_000
    report_to: list[str] = field(default_factory=list)
    push_to_hub: str | None = None
    hub_private: bool = False

    def __post_init__(self) -> None:
        for name in ("images", "total_batch_size", "tokenizer_images", "log_every_images", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not possible; it must be 1 or more.")
        for name in ("micro_batch_size", "checkpoint_every_images"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} is not possible; it must be 1 or more, or null.")
        for name in ("base_learning_rate", "warmup_images", "weight_decay"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} is not possible; it must be 0 or more.")
        if self.mixed_precision not in ("no", "bf16"):
            raise ValueError(f"mixed_precision={self.mixed_precision!r} is unknown; choose no or bf16.")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay={self.ema_decay} is not possible; it must be between 0 and 1, or null.")
        if self.max_grad_norm is not None and self.max_grad_norm <= 0:
            raise ValueError(f"max_grad_norm={self.max_grad_norm} is not possible; it must be positive, or null.")

    @property
    def steps(self) -> int:
        """Optimizer steps that the budget takes."""
        return -(-self.images // self.total_batch_size)

    def batch_layout(self, processes: int) -> tuple[int, int]:
        """
        Split the total batch.

        Returns:
            Micro-batch size and how many of them a process accumulates.

        Raises:
            ValueError: if the total batch does not divide.
        """
        share, rest = divmod(self.total_batch_size, processes)
        if rest or not share:
            raise ValueError(
                f"total_batch_size={self.total_batch_size} does not divide over {processes} processes; "
                f"give a multiple of {processes}."
            )
        micro = min(self.micro_batch_size or share, share)
        if share % micro:
            raise ValueError(
                f"micro_batch_size={micro} does not divide the {share} images of a process (total_batch_size="
                f"{self.total_batch_size} over {processes} processes); give a divisor of {share}."
            )
        return micro, share // micro


@dataclass
class Recipe:
    """A run: `model` (fields of LDAEConfig and perhaps `size`), `data` and `training`."""

    model: dict[str, Any]
    data: DataConfig
    training: TrainingConfig

    def model_config(self, **fields: Any) -> LDAEConfig:
        """The configuration of the `model:` section; `fields` win."""
        chosen = {**self.model, **fields}
        size = chosen.pop("size", None)
        return LDAEConfig(**chosen) if size is None else LDAEConfig.from_size(size, **chosen)

    def resolved(self) -> dict[str, Any]:
        """Every field of every section, as plain YAML values."""
        config = self.model_config()
        sections = {
            "model": {name: getattr(config, name) for name in MODEL_FIELDS},
            "data": dataclasses.asdict(self.data),
            "training": dataclasses.asdict(self.training),
        }
        return yaml.safe_load(yaml.safe_dump(_plain(sections)))

    def save(self, path: str | Path) -> None:
        """Write everything resolved as YAML."""
        Path(path).write_text(yaml.safe_dump(self.resolved(), sort_keys=False))


def load_recipe(path: str | Path | None, overrides: dict[str, str] | None = None) -> Recipe:
    """
    Read a recipe and override some of its fields.

    Args:
        path (`str` or `Path`, *optional*): The YAML file, with sections `model`, `data` and `training`.
        overrides (`dict[str, str]`, *optional*): Values by bare field name, as YAML text (`{"images": "1000"}`).

    Returns:
        [`Recipe`], checked: the model's configuration can be built.

    Raises:
        ValueError: for an unknown section or field, or a value of the wrong type.
    """
    sections = _read_sections(path)
    kinds = {"data": DataConfig, "training": TrainingConfig}
    owners = dict.fromkeys((*MODEL_FIELDS, "size"), "model")
    for section, kind in kinds.items():
        owners |= {f.name: section for f in dataclasses.fields(kind)}
    for name, text in (overrides or {}).items():
        if name not in owners:
            raise ValueError(f"--{name} is no field of a recipe{_did_you_mean(name, owners)}")
        sections[owners[name]][name] = yaml.safe_load(text) if isinstance(text, str) else text
    for section, values in sections.items():
        for name in values:
            if owners.get(name) != section:
                known = [other for other, owner in owners.items() if owner == section]
                raise ValueError(f"{section}.{name} is no field of a recipe{_did_you_mean(name, known)}")
    if "dataset" not in sections["data"]:
        raise ValueError("dataset is missing; give --dataset digits, a Hub id, a folder of images or a glob of files.")
    recipe = Recipe(
        model=_coerce_fields(sections["model"], {**LDAEConfig.__annotations__, "size": str}, "model"),
        data=_build(DataConfig, sections["data"], "data"),
        training=_build(TrainingConfig, sections["training"], "training"),
    )
    recipe.model_config()
    return recipe


def parse_overrides(arguments: list[str]) -> dict[str, str]:
    """`["--images", "1000", "--streaming=true"]` to `{"images": "1000", "streaming": "true"}`."""
    overrides: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        if not name.startswith("--"):
            raise ValueError(f"{name!r} is not understood; write --field value.")
        if not equals:
            if not rest:
                raise ValueError(f"{name} has no value; write {name} value.")
            value = rest.pop(0)
        overrides[name[2:].replace("-", "_")] = value
    return overrides


def differences(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Fields that matter to the trained numbers in which two resolved recipes differ, as `section.field: a -> b`."""
    return [
        f"{section}.{name}: {theirs.get(section, {}).get(name)!r} -> {value!r}"
        for section, fields in ours.items()
        for name, value in fields.items()
        if name not in FREE_FIELDS and theirs.get(section, {}).get(name) != value
    ]


def _read_sections(path: str | Path | None) -> dict[str, dict[str, Any]]:
    sections: dict[str, dict[str, Any]] = {"model": {}, "data": {}, "training": {}}
    if path is None:
        return sections
    if not Path(path).is_file():
        raise ValueError(
            f"config={str(path)!r} is no file; give the path of a recipe, such as training/recipes/*.yaml."
        )
    content = yaml.safe_load(Path(path).read_text()) or {}
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no recipe: it must have the sections {', '.join(sections)}.")
    for section, values in content.items():
        if section not in sections:
            raise ValueError(f"{path}: section {section!r} is unknown{_did_you_mean(section, sections)}")
        if not isinstance(values, dict):
            raise ValueError(f"{path}: section {section!r} must hold `field: value` lines, not {values!r}.")
        sections[section] = dict(values)
    return sections


def _build(kind: type, values: dict[str, Any], section: str) -> Any:
    return kind(**_coerce_fields(values, typing.get_type_hints(kind), section))


def _coerce_fields(values: dict[str, Any], hints: dict[str, Any], section: str) -> dict[str, Any]:
    return {name: _coerce(value, hints[name], f"{section}.{name}") for name, value in values.items()}


def _coerce(value: Any, hint: Any, name: str) -> Any:
    """YAML gives ints for floats, lists for tuples and text for `1e4`; anything else of a wrong type is an error."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
    if value is None and type(None) in options:
        return None
    for option in options:
        kind = typing.get_origin(option) or option
        if kind in (int, float) and (number := _number(value)) is not None and (kind is float or number.is_integer()):
            return kind(number)
        if kind is tuple and isinstance(value, (list, tuple)) and len(value) == len(typing.get_args(option)):
            return tuple(_coerce(v, h, name) for v, h in zip(value, typing.get_args(option), strict=True))
        if kind is list and isinstance(value, str):
            return [part.strip() for part in value.split(",") if part.strip()]
        if kind in (str, list, bool) and isinstance(value, kind):
            return value
        if kind is str and value is False:  # YAML takes a bare `no` for false
            return "no"
    wanted = " or ".join(getattr(option, "__name__", str(option)).replace("NoneType", "null") for option in options)
    raise ValueError(f"{name}={value!r} has the wrong type; it must be {wanted}.")


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        return float(value)
    except ValueError:
        return None


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def _did_you_mean(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(sorted(known))}."
