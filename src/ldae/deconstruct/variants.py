"""The variants of a preset, its rows and the latent dimensions of its sweep, as recipes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldae.deconstruct.preset import Preset, find_rows, row_key
from ldae.models.configuration_ldae import CONV_VAE_DEFAULTS
from ldae.training.recipe import Recipe, build_recipe, read_sections


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
    variants = [
        Variant(f"rows/{name}", row_key(name), name, read_sections(preset.recipes / f"{name}.yaml"))
        for name in preset.rows
    ]
    if preset.sweep is None:
        return variants
    (row,) = find_rows(preset.recipes, [preset.sweep.row])
    for tokenizer, dimensions in preset.sweep.dimensions.items():
        sections = read_sections(preset.recipes / f"{row}.yaml")
        sections["model"]["latent_tokenizer"] = tokenizer
        variants += [sweep_variant(tokenizer, dimension, sections) for dimension in dimensions]
    return variants


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
        recipe = build_recipe(sections)
        total = recipe.model_config().total_num_hidden_layers
        for name in ("search_blocks", "blocks"):
            blocks = getattr(preset.probe, name) or ()
            if not all(1 <= block <= total for block in blocks):
                raise ValueError(f"probe.{name}={blocks} must be blocks of the {total}, counted from 1.")
        return recipe
    except ValueError as error:
        raise ValueError(f"{variant.name} under {preset.path}: {error}") from error


def _at_dimension(variant: Variant, model: dict[str, Any]) -> dict[str, Any]:
    """Return the model fields for a latent dimension; a convolutional VAE's follows from its number of channels."""
    if variant.tokenizer != "conv_vae" or variant.dimension is None:
        return {"latent_dim": variant.dimension}
    given, patch_size = model.get("conv_vae_config") or {}, model.get("patch_size", 16)
    stride = 2 ** (len({**CONV_VAE_DEFAULTS, **given}["block_out_channels"]) - 1)
    positions = max(1, patch_size // stride) ** 2  # of the VAE's map in a patch
    channels, rest = divmod(variant.dimension, positions)
    if rest or not channels:
        raise ValueError(
            f"sweep.dimensions.conv_vae={variant.dimension} must be a multiple of {positions}, for a stride of "
            f"{stride} and patch_size={patch_size}."
        )
    return {"latent_dim": variant.dimension, "conv_vae_config": {**given, "latent_channels": channels}}
