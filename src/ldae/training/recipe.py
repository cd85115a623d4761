"""Recipes: one YAML file that says the model, the data and the budget, and command-line values that override it."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ldae.data import DataConfig
from ldae.models.configuration_ddae import DDAEConfig
from ldae.models.configuration_ldae import LDAEConfig
from ldae.training.options import FREE_FIELDS, TokenizerConfig, TrainingConfig


MODELS: dict[str, Any] = {"ldae": LDAEConfig, "ddae": DDAEConfig}


def model_fields(model_type: str) -> tuple[str, ...]:
    """The papers' choices: the fields that the configuration of a model itself declares."""
    return tuple(name for name in MODELS[model_type].__annotations__ if not name.startswith("_"))


MODEL_FIELDS = model_fields("ldae")
_KINDS: dict[str, Any] = {"data": DataConfig, "tokenizer": TokenizerConfig, "training": TrainingConfig}
SECTIONS = ("model", *_KINDS)


@dataclass
class Recipe:
    """A run: `model` (its `model_type`, fields of its configuration, perhaps `size`), `data`, `tokenizer`, `training`."""

    model: dict[str, Any]
    data: DataConfig
    tokenizer: TokenizerConfig
    training: TrainingConfig

    @property
    def model_type(self) -> str:
        """What is trained: `"ldae"` or `"ddae"`."""
        return self.model.get("model_type", "ldae")

    def model_config(self, **fields: Any) -> Any:
        """The [`LDAEConfig`] or [`DDAEConfig`] of the `model:` section; `fields` win."""
        chosen = {**self.model, **fields}
        chosen.pop("model_type", None)
        if self.model_type != "ldae":
            return MODELS[self.model_type](**chosen)
        size = chosen.pop("size", None)
        return LDAEConfig(**chosen) if size is None else LDAEConfig.from_size(size, **chosen)

    def resolved(self) -> dict[str, Any]:
        """Every field of every section, as plain YAML values."""
        config = self.model_config()
        sections = {
            "model": {name: getattr(config, name) for name in model_fields(self.model_type)},
            "data": dataclasses.asdict(self.data),
            "tokenizer": dataclasses.asdict(self.tokenizer),
            "training": dataclasses.asdict(self.training),
        }
        if self.model_type != "ldae":
            sections["model"] = {"model_type": self.model_type, **sections["model"]}
            del sections["tokenizer"]
        return yaml.safe_load(yaml.safe_dump(_plain(sections)))

    def save(self, path: str | Path) -> None:
        """Write everything resolved as YAML."""
        Path(path).write_text(yaml.safe_dump(self.resolved(), sort_keys=False))


def load_recipe(path: str | Path | None, overrides: dict[str, str] | None = None) -> Recipe:
    """
    Read a recipe and override some of its fields.

    Args:
        path (`str` or `Path`, *optional*): The YAML file, with sections `model`, `data`, `tokenizer` and `training`. Its key
            `base` names another recipe, relative to its own folder, from which the file is the difference.
        overrides (`dict[str, str]`, *optional*): Values by bare field name, as YAML text (`{"images": "1000"}`).

    Returns:
        [`Recipe`], checked: the model's configuration can be built.

    Raises:
        ValueError: for an unknown section or field, or a value of the wrong type.
    """
    return build_recipe(read_sections(path), overrides)


def build_recipe(sections: dict[str, dict[str, Any]], overrides: dict[str, Any] | None = None) -> Recipe:
    """
    A recipe of sections that were read, or put together; otherwise as [`load_recipe`].

    Args:
        sections (`dict`): Of the four sections, those that there are.
        overrides (`dict`, *optional*): Values by bare field name; text is read as YAML.
    """
    sections = {name: dict(sections.get(name, {})) for name in SECTIONS}
    overrides = {
        name: yaml.safe_load(value) if isinstance(value, str) else value for name, value in (overrides or {}).items()
    }
    model_type = overrides.get("model_type", sections["model"].get("model_type", "ldae"))
    if model_type not in MODELS:
        raise ValueError(f"model_type={model_type!r} is unknown; choose one of {', '.join(MODELS)}.")
    owners = field_owners(model_type)
    for name, value in overrides.items():
        if name not in owners:
            raise ValueError(f"--{name} is no field of a recipe{did_you_mean(name, owners)}")
        sections[owners[name]][name] = value
    for section, values in sections.items():
        for name in values:
            if owners.get(name) != section:
                known = [other for other, owner in owners.items() if owner == section]
                raise ValueError(f"{section}.{name} is no field of a recipe{did_you_mean(name, known)}")
    if "dataset" not in sections["data"]:
        raise ValueError("dataset is missing; give --dataset digits, a Hub id, a folder of images or a glob of files.")
    recipe = Recipe(
        model=_coerce_fields(
            sections["model"], {**MODELS[model_type].__annotations__, "size": str, "model_type": str}, "model"
        ),
        **{name: build_section(kind, sections[name], name) for name, kind in _KINDS.items()},
    )
    if model_type == "ldae":
        _check_latent_cache(recipe)
    else:
        _refuse_latents(recipe, sections["tokenizer"])
    _check_augmentation(recipe)
    return recipe


def _check_augmentation(recipe: Recipe) -> None:
    """Images that are augmented without the network being told would be what it generates."""
    probability = recipe.data.geometric_augmentation
    if probability and not (recipe.model_type == "ddae" and recipe.model_config().augmentation_labels):
        raise ValueError(
            f"geometric_augmentation={probability} is not possible without the labels that keep it out of generated images; "
            "set augmentation_labels: true of a DDAE (model_type: ddae), or geometric_augmentation: 0."
        )


def _refuse_latents(recipe: Recipe, tokenizer: dict[str, Any]) -> None:
    """What a model that sees pixels has no use for. Building its configuration checks its fields."""
    recipe.model_config()
    given = [f"tokenizer.{name}={value!r}" for name, value in tokenizer.items()]
    if recipe.training.latent_cache is not None:
        given.append(f"latent_cache={recipe.training.latent_cache!r}")
    if given:
        raise ValueError(
            f"{given[0]} is not possible with model_type={recipe.model_type!r}, which sees pixels and has no latent "
            "tokenizer; leave it out."
        )


def _check_latent_cache(recipe: Recipe) -> None:
    """What a cache of latents goes with."""
    folder, config = recipe.training.latent_cache, recipe.model_config()
    if folder is None:
        return
    refusals = [
        (recipe.data.streaming, "data.streaming=true", "cached latents are read in any order, as a stream cannot be"),
        (
            recipe.data.random_resized_crop,
            "data.random_resized_crop=true",
            "every epoch crops anew, and cached latents are of the centre crop",
        ),
        (
            config.prediction_target == "image",
            "prediction_target='image'",
            "the target is the image, which has to be read anyway",
        ),
        (
            config.latent_tokenizer != "conv_vae",
            f"latent_tokenizer={config.latent_tokenizer!r}",
            "a patch-wise tokenizer is one matrix product, which reading its result would not beat",
        ),
    ]
    for refused, field, reason in refusals:
        if refused:
            raise ValueError(f"latent_cache={folder!r} is not possible with {field}: {reason}. Set one of them back.")


def field_owners(model_type: str = "ldae") -> dict[str, str]:
    """The section that each field of a recipe belongs to."""
    names = ("model_type", *model_fields(model_type), *(["size"] if model_type == "ldae" else []))
    owners = dict.fromkeys(names, "model")
    for section, kind in _KINDS.items():
        owners |= {f.name: section for f in dataclasses.fields(kind)}
    return owners


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


def read_sections(path: str | Path | None, extra: Iterable[str] = ()) -> dict[str, Any]:
    """
    The sections of a YAML file over those of its `base`, and of that one's base, field by field.

    Args:
        path (`str` or `Path`, *optional*): The file; without one, every section is empty.
        extra (`Iterable[str]`): Other keys that may stand in the file; they come back as they are.

    Returns:
        `dict` with the four sections and what there was of the extra keys.

    Raises:
        ValueError: for a missing file, an unknown section, or bases that go round in a circle.
    """
    sections: dict[str, Any] = {name: {} for name in SECTIONS}
    files: list[tuple[Path, dict[str, Any]]] = []
    while path is not None:
        path = Path(path)
        if not path.is_file():
            named = f"; {files[-1][0]} has it as its base" if files else ", such as training/recipes/*.yaml"
            raise ValueError(f"config={str(path)!r} is no file; give the path of a recipe{named}.")
        if any(path.samefile(other) for other, _ in files):
            raise ValueError(f"{path}: its bases lead back to it.")
        content = yaml.safe_load(path.read_text()) or {}
        if not isinstance(content, dict):
            raise ValueError(f"{path} is no recipe: it must have the sections {', '.join(sections)}.")
        base = content.pop("base", None)
        files.append((path, content))
        path = None if base is None else path.parent / base
    for path, content in reversed(files):
        for section, values in content.items():
            if section in extra:
                sections[section] = values
            elif section not in sections:
                raise ValueError(f"{path}: section {section!r} is unknown{did_you_mean(section, [*sections, *extra])}")
            elif not isinstance(values, dict):
                raise ValueError(f"{path}: section {section!r} must hold `field: value` lines, not {values!r}.")
            else:
                sections[section] = {**sections[section], **values}
    return sections


def build_section(kind: type, values: dict[str, Any], section: str) -> Any:
    """A dataclass of a section's values, each of the right type or an error that names it as `section.field`."""
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
        if kind in (str, list, bool, dict) and isinstance(value, kind):
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


def did_you_mean(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(sorted(known))}."
