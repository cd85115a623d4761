"""Recipes: one YAML file that names the model, the data and the budget, and values that override its fields."""

import dataclasses
import functools
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from glob import has_magic
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

import yaml

from ldae.options import Option, build, convert_fields, describe, describe_source, did_you_mean, plain, read_yaml
from ldae.places import near_path
from ldae.sections import FREE_FIELDS, DataConfig, TokenizerConfig, TrainingConfig


MODELS = {"ldae": "LDAEConfig", "ddae": "DDAEConfig"}  # model_type -> class in models/configuration_*.py
SECTIONS: dict[str, Any] = {"data": DataConfig, "tokenizer": TokenizerConfig, "training": TrainingConfig}
SIZES = Literal["nano", "tiny", "small", "base", "12L", "large"]
MODEL_OPTIONS = (
    Option(
        "model_type",
        Literal["ldae", "ddae"],
        "ldae",
        "The model: an l-DAE, or a DDAE around a network of diffusers.",
    ),
    Option("size", SIZES | None, None, "Named size of an l-DAE: its width, depth and heads."),
)
PATH_FIELDS = ("dataset", "tokenizer", "perceptual_model", "checkpoint")  # compared by where they lead
PACKAGE = Path(__file__).parents[1]


@functools.cache
def model_options(model_type: str) -> tuple[Option, ...]:
    """List the fields that a model's configuration declares, without importing transformers."""
    source = PACKAGE / "models" / f"configuration_{model_type}.py"
    return tuple(describe_source(source, MODELS[model_type]))


def model_fields(model_type: str) -> tuple[str, ...]:
    """List the names of the fields that a model's configuration declares."""
    return tuple(option.name for option in model_options(model_type))


def model_class(model_type: str) -> Any:
    """Import the configuration class of a model."""
    return getattr(import_module(f"ldae.models.configuration_{model_type}"), MODELS[model_type])


def recipe_options() -> dict[str, list[Option]]:
    """List the fields of a recipe by section."""
    return {
        "model": [*MODEL_OPTIONS, *model_options("ldae")],
        "model, with model_type: ddae": list(model_options("ddae")),
        **{section: describe(kind) for section, kind in SECTIONS.items()},
    }


@dataclass
class Recipe:
    """A checked recipe.

    Args:
        model: `model_type`, fields of the model's configuration, and for an l-DAE perhaps `size`.
        data: Where the images come from.
        tokenizer: Where the latent tokenizer comes from; unused by a DDAE.
        training: Budget, optimization and output.
    """

    model: dict[str, Any]
    data: DataConfig
    tokenizer: TokenizerConfig
    training: TrainingConfig

    @property
    def model_type(self) -> str:
        """Type of the model: `"ldae"` or `"ddae"`."""
        return self.model.get("model_type", "ldae")

    def model_config(self, **fields: Any) -> Any:
        """Build the [`LDAEConfig`] or [`DDAEConfig`] of the `model:` section; `fields` win."""
        chosen = {**self.model, **fields}
        chosen.pop("model_type", None)
        size, config_class = chosen.pop("size", None), model_class(self.model_type)
        return config_class(**chosen) if size is None else config_class.from_size(size, **chosen)

    def resolved(self) -> dict[str, Any]:
        """Return every field of every section as plain YAML values."""
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
        return yaml.safe_load(yaml.safe_dump(plain(sections)))

    def save(self, path: str | Path) -> None:
        """Write every field as YAML."""
        Path(path).write_text(yaml.safe_dump(self.resolved(), sort_keys=False))


def load_recipe(path: str | Path | None, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe and override some of its fields.

    Args:
        path (`str` or `Path`, *optional*): The YAML file, with sections `model`, `data`, `tokenizer` and `training`,
            or the name of a recipe that comes with ldae. The key `base` names another recipe, relative to the file's
            folder, that the file changes.
        overrides (`dict`, *optional*): Values by field name, `images` or `training.images`; text is read as YAML.

    Returns:
        [`Recipe`], checked: the model's configuration can be built.

    Raises:
        ValueError: For an unknown section or field, or a value of the wrong type.
    """
    return build_recipe(read_sections(path), overrides)


def build_recipe(sections: Mapping[str, Mapping[str, Any]], overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Build a recipe from those of the four sections that there are, and from overrides; see [`load_recipe`]."""
    recipe = merge_sections(sections, overrides)
    config = recipe.model_config()
    if recipe.model_type == "ldae":
        _check_latent_cache(recipe, config)
    else:
        _refuse_latents(recipe, sections.get("tokenizer", {}), overrides or {})
    _check_augmentation(recipe.data, config)
    return recipe


def merge_sections(sections: Mapping[str, Mapping[str, Any]], overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Build a recipe whose fields are known and of the right type, without building the model's configuration."""
    chosen = {name: dict(sections.get(name, {})) for name in ("model", *SECTIONS)}
    overrides = overrides or {}
    # A misspelt model_type would otherwise be seen as a field of the wrong model.
    _refuse_unknown(chosen, {name: owner for kind in MODELS for name, owner in field_owners(kind).items()}, "a recipe")
    model_type = overrides.get("model_type", chosen["model"].get("model_type", "ldae"))
    if not isinstance(model_type, str) or model_type not in MODELS:
        raise ValueError(f"model_type={model_type!r} is unknown; choose one of {', '.join(MODELS)}.")
    owners = field_owners(model_type)
    _refuse_other_models([*overrides, *(f"model.{name}" for name in chosen["model"])], owners, model_type)
    override(chosen, overrides, owners)
    if "dataset" not in chosen["data"]:
        raise ValueError(
            "dataset is missing; give --dataset digits, a Hub id, a folder of images or a glob of files, or --config "
            "and a recipe that names one."
        )
    hints = {option.name: option.hint for option in (*MODEL_OPTIONS, *model_options(model_type))}
    return Recipe(
        model=convert_fields(chosen["model"], hints, "model"),
        **{name: build(kind, chosen[name], name) for name, kind in SECTIONS.items()},
    )


def override(
    sections: dict[str, dict[str, Any]],
    overrides: Mapping[str, Any],
    owners: Mapping[str, str],
    what: str = "a recipe",
) -> None:
    """Put values, named `images` or `training.images`, into the sections that own their fields, in place.

    Raises:
        ValueError: For an unknown field, also in the sections.
    """
    for name, value in overrides.items():
        section, _, field = name.rpartition(".")
        if field not in owners or section not in ("", owners[field]):
            raise ValueError(f"--{name} is not a field of {what}{did_you_mean(field, owners)}")
        sections[owners[field]][field] = value
    _refuse_unknown(sections, owners, what)


def _refuse_unknown(sections: Mapping[str, Mapping[str, Any]], owners: Mapping[str, str], what: str) -> None:
    """Refuse fields that no section or another one owns."""
    for section, values in sections.items():
        for name in values:
            if owners.get(name) != section:
                known = [other for other, owner in owners.items() if owner == section]
                raise ValueError(f"{section}.{name} is not a field of {what}{did_you_mean(name, known)}")


def _refuse_other_models(given: Iterable[str], owners: Mapping[str, str], model_type: str) -> None:
    """Refuse fields that only another kind of model has."""
    for other in MODELS:
        only = field_owners(other).keys() - owners.keys() if other != model_type else set()
        for name in given:
            if name.rpartition(".")[2] in only:
                raise ValueError(
                    f"{name} only applies with model_type={other!r}, and this is {model_type!r}; leave it out."
                )


def field_owners(model_type: str = "ldae") -> dict[str, str]:
    """Map each field of a recipe to its section."""
    names = ("model_type", *model_fields(model_type), *(["size"] if model_type == "ldae" else []))
    owners = dict.fromkeys(names, "model")
    for section, kind in SECTIONS.items():
        owners |= {field.name: section for field in dataclasses.fields(kind)}
    return owners


def differences(ours: dict[str, Any], theirs: dict[str, Any], folder: Path) -> list[str]:
    """List the fields in which a resolved recipe differs from that of a run's folder, as `field: theirs -> ours`.

    Fields on which no trained number depends are left out. Paths may be relative to the folder.
    """
    both_derived = "finetuning" in ours and all(has_derived_warmup(side.get("training")) for side in (ours, theirs))
    changed = []
    for section, fields in ours.items():
        for name, value in fields.items():
            before = theirs.get(section, {}).get(name)
            if value == before or name in FREE_FIELDS or (name == "warmup_images" and both_derived):
                continue
            if not (name in PATH_FIELDS and _same_place(value, before, folder)):
                changed.append(f"{section}.{name}: {before!r} -> {value!r}")
    return changed


def has_derived_warmup(training: Mapping[str, Any] | None) -> bool:
    """Return true if `warmup_images` is what fine-tuning derives from the budget: 5 of 100 epochs."""
    images, warmup = (training or {}).get("images"), (training or {}).get("warmup_images")
    return isinstance(images, int) and warmup == images // 20


def _same_place(first: Any, second: Any, folder: Path) -> bool:
    """Tell whether two values are paths, from here or from a run's folder, that lead to the same place."""
    if not (isinstance(first, str) and isinstance(second, str)):
        return False
    places = []
    for value in (first, second):
        own = Path(value).expanduser()
        places.append({path.resolve() for path in (own, folder / own) if path.exists() or has_magic(value)})
    return bool(places[0] & places[1])


def read_sections(path: str | Path | None, extra: Iterable[str] = ()) -> dict[str, Any]:
    """Read the four sections of a YAML file over those of its `base`, and of the base of that, field by field.

    Args:
        path (`str` or `Path`, *optional*): The file, or the name of a recipe that comes with ldae; without one, every
            section is empty.
        extra (`Iterable[str]`): Other keys that may stand in the file; they are returned unchanged.

    Raises:
        ValueError: For a missing file, an unknown section, or bases that lead back to the file.
    """
    sections: dict[str, Any] = {name: {} for name in ("model", *SECTIONS)}
    files: list[tuple[Path, dict[str, Any]]] = []
    base: Any = None
    while path is not None:
        path = find_recipe(path)
        if not os.path.isfile(path):  # also false for a name that is too long
            if files:
                raise ValueError(
                    f"{files[-1][0]}: base={base!r} is not a file; give the path of a recipe, relative to this one."
                )
            known = [file.stem for file in recipes_folder().glob("*.yaml")]
            near = near_path(str(path)) or did_you_mean(str(path), known).replace("--help", "ldae recipes")
            raise ValueError(f"config={str(path)!r} is neither a file nor a recipe of ldae{near}")
        if any(path.samefile(other) for other, _ in files):
            raise ValueError(f"{path}: its bases lead back to it.")
        content = read_yaml(path)
        base = content.pop("base", None)
        if not isinstance(base, str | None):
            raise ValueError(f"{path}: base={base!r} must be the path of a recipe, relative to this one.")
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


def side_training(
    output_dir: str | Path | None, images: int, batch_size: int, learning_rate: float, **fields: Any
) -> TrainingConfig:
    """Return the `training:` section of a network beside the denoiser; its learning rate is not per 256 images."""
    return TrainingConfig(
        output_dir=None if output_dir is None else str(output_dir),
        images=images,
        total_batch_size=batch_size,
        base_learning_rate=learning_rate * 256 / batch_size,
        log_every_images=max(1, images // 20),
        keep_checkpoints=1,
        probe_every_images=0,
        **fields,
    )


def recipes_folder() -> Path:
    """Return the folder of the recipes that come with ldae: inside the package, or in a checkout beside it."""
    inside = PACKAGE / "recipes"
    return inside if inside.is_dir() else PACKAGE.parents[1] / "training" / "recipes"


def recipe_files() -> dict[str, Path]:
    """Return the files of the recipes and presets that come with ldae, by name, such as `deconstruction/12_ldae`."""
    folder = recipes_folder()
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}


def find_recipe(path: str | Path) -> Path:
    """Return the file of a recipe that is given by its path, or by the name of one that comes with ldae."""
    named = recipes_folder() / f"{path}.yaml"
    return Path(path) if os.path.exists(path) or not os.path.isfile(named) else named


def _check_augmentation(data: DataConfig, config: Any) -> None:
    """Refuse geometric augmentation that the network is not told of: it would appear in generated images."""
    probability = data.geometric_augmentation
    if probability and not getattr(config, "augmentation_labels", False):
        raise ValueError(
            f"geometric_augmentation={probability} needs augmentation_labels, which keep it out of generated images; "
            "set augmentation_labels: true of a DDAE (model_type: ddae), or geometric_augmentation: 0."
        )


def _refuse_latents(recipe: Recipe, tokenizer: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
    """Refuse fields of the latent tokenizer for a model that has none."""
    names = {field.name for field in dataclasses.fields(TokenizerConfig)}
    given = {**tokenizer, **{name.rpartition(".")[2]: value for name, value in overrides.items()}}
    refused = [f"tokenizer.{name}={value!r}" for name, value in given.items() if name in names]
    if recipe.training.latent_cache is not None:
        refused.append(f"latent_cache={recipe.training.latent_cache!r}")
    if refused:
        raise ValueError(
            f"{refused[0]} does not apply with model_type={recipe.model_type!r}, which sees pixels and has no latent "
            "tokenizer; leave it out."
        )


def _check_latent_cache(recipe: Recipe, config: Any) -> None:
    """Refuse a cache of latents for a model or data that cannot use one."""
    folder = recipe.training.latent_cache
    if folder is None:
        return
    refusals = [
        (recipe.data.streaming, "data.streaming=true", "cached latents are read in any order, a stream in its own"),
        (
            recipe.data.random_resized_crop,
            "data.random_resized_crop=true",
            "every epoch crops anew, and the cache holds the latents of centre crops",
        ),
        (
            config.prediction_target == "image",
            "prediction_target='image'",
            "the target is the image, which has to be read anyway",
        ),
        (
            config.latent_tokenizer != "conv_vae",
            f"latent_tokenizer={config.latent_tokenizer!r}",
            "a patch-wise tokenizer is one matrix product, which is as fast as reading its result",
        ),
    ]
    for refused, field, reason in refusals:
        if refused:
            raise ValueError(f"latent_cache={folder!r} does not go with {field}: {reason}. Change one of them.")
