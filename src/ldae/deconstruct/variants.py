"""The variants of a preset, its rows and the latent dimensions of its sweep, as recipes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldae.deconstruct.preset import Preset, row_key
from ldae.files import hash_settings
from ldae.models.configuration_ldae import CONV_VAE_DEFAULTS
from ldae.sections import FREE_FIELDS
from ldae.training.recipe import Recipe, build_recipe, read_sections
from ldae.training.tokenizer_training import tokenizer_recipe


@dataclass(frozen=True)
class Variant:
    """One bar or one point of the report: a row, or a tokenizer at one latent dimension.

    Attributes:
        folder (`str`): Its folder below the output folder.
        key (`str`): The row's number (`"07"`), or `"pca-8"` in a sweep.
        name (`str`): The row's name, or the sweep's point in words.
        sections (`dict`): The sections of its recipe, before the preset's are laid over them.
        tokenizer (`str`, *optional*), dimension (`int`, *optional*): What a sweep varies.
    """

    folder: str
    key: str
    name: str
    sections: dict[str, dict[str, Any]]
    tokenizer: str | None = None
    dimension: int | None = None


def list_variants(preset: Preset) -> list[Variant]:
    """List all variants of a preset, its rows first.

    Raises:
        ValueError: If a recipe is invalid.
    """
    rows = [
        Variant(f"rows/{name}", row_key(name), name, read_sections(preset.recipes / f"{name}.yaml"))
        for name in preset.rows
    ]
    return rows + (_sweep_variants(preset) if preset.sweep is not None else [])


def sweep_variant(tokenizer: str, dimension: int, sections: dict[str, dict[str, Any]]) -> Variant:
    """Return the point of a sweep for one tokenizer and latent dimension."""
    name = f"{tokenizer} at d = {dimension}"
    return Variant(f"sweep/{tokenizer}-d{dimension}", f"{tokenizer}-{dimension}", name, sections, tokenizer, dimension)


def variant_recipe(variant: Variant, preset: Preset, seed: int, output_dir: Path, num_classes: int | None) -> Recipe:
    """Build a variant's recipe under a preset.

    The preset's fields replace the row's, but switch nothing on: `num_class_embeds`, `perceptual_weight`,
    `adversarial_weight` and `conv_vae_config` apply to rows that use them. `latent_cache` is the folder that holds the
    caches of those runs that can have one.

    Args:
        variant ([`Variant`]): The variant.
        preset ([`Preset`]): The preset laid over it.
        seed (`int`): Seed of the pre-training.
        output_dir (`Path`): The run's folder.
        num_classes (`int`, *optional*): Number of classes of the data, for a class-conditional row.

    Returns:
        [`Recipe`].

    Raises:
        ValueError: If the variant and the preset contradict each other.
    """
    laid = {name: dict(values) for name, values in preset.sections.items()}
    own_model, own_tokenizer = variant.sections["model"], variant.sections["tokenizer"]
    kind = own_model.get("latent_tokenizer", "pca")
    laid["tokenizer"] |= preset.tokenizers.get(kind, {})
    if own_model.get("num_class_embeds") is None:
        laid["model"].pop("num_class_embeds", None)
    elif num_classes is not None:
        laid["model"].setdefault("num_class_embeds", num_classes)
    for name in ("perceptual_weight", "adversarial_weight"):
        if not own_tokenizer.get(name):
            laid["tokenizer"].pop(name, None)
    cache = laid["training"].pop("latent_cache", None)
    if kind != "conv_vae":
        laid["model"].pop("conv_vae_config", None)
    elif cache is not None:  # each run its own, so that no two fill one
        laid["training"]["latent_cache"] = str(Path(cache) / variant.folder / f"seed-{seed}")
    sections = {name: {**variant.sections[name], **laid[name]} for name in laid}
    if variant.dimension is not None:
        sections["model"] |= _at_dimension(variant, sections["model"])
    # The measurements search the block and time step themselves, and compare them with the recipe's own.
    sections["training"] |= {"seed": seed, "output_dir": str(output_dir), "select_features": False}
    try:
        return build_recipe(sections)
    except ValueError as error:
        raise ValueError(f"{variant.name} under {preset.path}: {error}") from error


def tokenizer_name(recipe: Recipe) -> str:
    """Name the folder of a recipe's tokenizer by its kind, its dimension and a hash of all that it depends on.

    Rows with the same tokenizer share it. Each seed has its own, so that the spread over seeds includes the
    tokenizer's.
    """
    described = tokenizer_recipe(recipe, "shared").resolved()
    described["tokenizer"]["perceptual_model"] = Path(described["tokenizer"]["perceptual_model"]).name
    config = recipe.model_config()
    kept = {  # the fields that a trained number depends on
        section: {name: value for name, value in values.items() if name not in FREE_FIELDS or name == "images"}
        for section, values in described.items()
    }
    return f"{config.latent_tokenizer}-d{config.latent_dim}-{hash_settings(kept)}"


def _sweep_variants(preset: Preset) -> list[Variant]:
    assert preset.sweep is not None
    (path,) = [p for p in preset.recipes.glob("*.yaml") if row_key(p.stem) == preset.sweep.row]
    sections = read_sections(path)
    return [
        sweep_variant(
            tokenizer, dimension, {**sections, "model": {**sections["model"], "latent_tokenizer": tokenizer}}
        )
        for tokenizer, dimensions in preset.sweep.dimensions.items()
        for dimension in dimensions
    ]


def _at_dimension(variant: Variant, model: dict[str, Any]) -> dict[str, Any]:
    """Return the model fields for a latent dimension; a convolutional VAE's follows from its number of channels."""
    fields: dict[str, Any] = {"latent_dim": variant.dimension}
    if variant.tokenizer == "conv_vae" and variant.dimension is not None:
        network = {**CONV_VAE_DEFAULTS, **(model.get("conv_vae_config") or {})}
        stride = 2 ** (len(network["block_out_channels"]) - 1)
        channels, rest = divmod(variant.dimension, max(1, model.get("patch_size", 16) // stride) ** 2)
        if rest or not channels:
            raise ValueError(
                f"sweep.dimensions.conv_vae={variant.dimension} must be a multiple of "
                f"{(model.get('patch_size', 16) // stride) ** 2}, for a stride of {stride} and "
                f"patch_size={model.get('patch_size', 16)}."
            )
        fields["conv_vae_config"] = {**(model.get("conv_vae_config") or {}), "latent_channels": channels}
    return fields
