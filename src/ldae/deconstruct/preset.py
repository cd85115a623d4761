"""Presets: YAML files with the rows of the trajectory, or the latent dimensions, to run, and their data and budget.

A preset has the four sections of a recipe, which are laid over every row, and keys of its own; see [`Preset`].
"""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ldae.options import Option, build, describe, did_you_mean, options
from ldae.options.values import convert
from ldae.sections import ResNetClassifierConfig, TokenizerConfig
from ldae.training.recipe import SECTIONS, field_owners, find_recipe, override, read_sections, recipe_options


if TYPE_CHECKING:
    from ldae.evaluation.protocol import Protocol


ROW_NAME = re.compile(r"(\d\d[a-z]?)_\w+")  # 07_patch_pca: the row's number and what it does
ROW_FIELDS = (
    "latent_tokenizer noise_schedule prediction_target input_space loss_weighting residual_weight random_resized_crop"
)
# Fields of a recipe that a preset cannot set for every run, and why.
REFUSED = {
    **dict.fromkeys(ROW_FIELDS.split(), "differs between rows; set it in a row's recipe."),
    "output_dir": "is not a field of a preset; give --output_dir on the command line.",
    "seed": "is not a field of a preset; give seeds, or --seeds on the command line.",
    "tokenizer": "is not a field of a preset; rows differ in their tokenizer; name one in the recipe of a row.",
    "push_to_hub": "is not a field of a preset; send a finished run with `ldae push_to_hub`.",
}


@options
class ProbeOptions:
    """The `probe:` section of a preset: how every run is probed, and which runs are looked at more closely.

    Args:
        protocol: `cached` computes features once; `paper` computes them under random crops in every epoch and needs
            `probe: adam`.
        probe: `logistic` is solved to convergence; `adam` trains as the papers do, at the recipe's own block and t.
        search_blocks: Blocks searched for the point at which the converged probe is reported; by default all.
        search_timesteps: Time steps of that search, of 1000; by default those of `grid_search`.
        epochs: Passes of Adam's probes over the training images.
        batch_size: Images in a step of Adam's probes; by default 16384, and less for small data sets.
        base_lr: Learning rate of Adam's probes for a batch of 256.
        lr_multipliers: Factors on that rate; the best is chosen on held-out images, and the list is extended if it
            lies at an end.
        seeds: Seeds of Adam's probes.
        crop_scale: Smallest and largest share of the area kept by the crops of the `paper` protocol.
        horizontal_flip: Mirror images; turn off for digits and letters.
        forward_batch_size: Images in a forward pass.
        baselines: Probe the untrained network, the mean latents and raw pixels too.
        study_rows: Rows of the block and time-step sweeps (App. A).
        blocks: Blocks of that sweep; by default all of a stack of up to 12, else the paper's 9 to 15 of 24 in
            proportion.
        timesteps: Time steps of that sweep, of 1000, clean and noisy.
    """

    protocol: Literal["cached", "paper"] = "cached"
    probe: Literal["logistic", "adam"] = "logistic"
    search_blocks: list[int] | None = None
    search_timesteps: list[int] | None = None
    epochs: int = Field(90, ge=1)
    batch_size: int | None = Field(None, ge=1)
    base_lr: float = 1e-4
    lr_multipliers: list[int | float] = field(default_factory=lambda: [1.0, 10.0, 100.0])
    seeds: list[int] = field(default_factory=lambda: [0])
    crop_scale: tuple[float, float] = (0.08, 1.0)
    horizontal_flip: bool = True
    forward_batch_size: int = Field(256, ge=1)
    baselines: bool = True
    study_rows: list[str] = field(default_factory=lambda: ["12"])
    blocks: list[int] | None = None
    timesteps: list[int] = field(default_factory=lambda: [0, 10, 20, 40, 80])

    def __post_init__(self) -> None:
        self.study_rows = [row_key(row) for row in self.study_rows]
        if self.probe == "logistic" and self.protocol == "paper":
            raise ValueError("protocol=paper needs an optimizer that works in epochs; give probe: adam.")
        for name in ("search_timesteps", "timesteps"):
            if not all(0 <= t < 1000 for t in getattr(self, name) or ()):
                raise ValueError(f"{name}={getattr(self, name)} must be from 0 to 999.")

    def make_protocol(
        self,
        layers: tuple[int, ...] | None = None,
        timesteps: tuple[int, ...] | None = None,
        noisy: bool = False,
    ) -> "Protocol":
        """Build the probes' protocol at given blocks and time steps."""
        from ldae.evaluation.linear_probe import MAX_LR_EXTENSIONS, ProbeSettings
        from ldae.evaluation.protocol import Protocol

        settings = ProbeSettings(
            epochs=self.epochs,
            batch_size=self.batch_size,
            base_lr=self.base_lr,
            lr_multipliers=tuple(float(value) for value in self.lr_multipliers),
            seeds=tuple(self.seeds),
            max_lr_extensions=MAX_LR_EXTENSIONS,
        )
        return Protocol(
            name=self.protocol,
            layers=layers,
            timesteps=timesteps,
            noisy=noisy,
            crop_scale=self.crop_scale,
            horizontal_flip=self.horizontal_flip,
            settings=settings,
        )


@options
class SweepOptions:
    """The `sweep:` section: latent dimensions of tokenizers, all on one row (Tab. 2, Fig. 5).

    Args:
        dimensions: Latent dimensions by tokenizer: `{pca: [8, 16], pixel: [12, 48]}`.
        row: Row on which they are tried; with `conv_vae` its input and target must be in latent space.
    """

    dimensions: dict[str, Any] = field(default_factory=dict)
    row: int | str = "07"

    def __post_init__(self) -> None:
        self.row = row_key(self.row)
        for tokenizer, dims in self.dimensions.items():
            if not isinstance(dims, list) or not all(type(d) is int and d > 0 for d in dims):
                raise ValueError(
                    f"dimensions.{tokenizer}={dims!r} must be a list of positive integers, such as [8, 16]."
                )


@options
class GenerationOptions:
    """The `generation:` section: samples of rows, and FID and KID from them; without it none are drawn.

    Args:
        num_images: Images drawn for FID and KID.
        reference_images: Training images that they are compared with; by default all.
        steps: Steps of the sampler.
        batch_size: Images drawn at a time, in each process.
        guidance_scale: Scale of classifier-free guidance in class-conditional rows; 1 turns it off.
        grid: Images in the picture.
        rows: Rows from which samples are drawn; by default all.
        extractor: Network whose features FID and KID compare: a folder or Hub id for `AutoModel`, or `inception`; by
            default the preset's classifier if it has one, else `inception`.
    """

    num_images: int = Field(1000, ge=2)
    reference_images: int | None = Field(None, ge=2)
    steps: int = Field(50, ge=1)
    batch_size: int = Field(250, ge=1)
    guidance_scale: float = 1.0
    grid: int = Field(40, ge=1)
    rows: list[str] | None = None
    extractor: str | None = None

    def __post_init__(self) -> None:
        if self.rows is not None:
            self.rows = [row_key(row) for row in self.rows]


@dataclass(frozen=True)
class Preset:
    """A checked preset.

    Args:
        path: The file.
        recipes: Folder of the rows' recipes.
        rows: Names of the rows, in order.
        seeds: Seeds; each row is pre-trained once with each.
        sections: The four sections of a recipe, laid over every row.
        tokenizers: More fields of the tokenizer section, by type of tokenizer.
        sweep: Latent dimensions, or `None`.
        classifier: Classifier that is trained first, or `None`.
        probe: How every run is probed.
        generation: Samples and their scores, or `None`.
    """

    path: Path
    recipes: Path
    rows: tuple[str, ...]
    seeds: tuple[int, ...]
    sections: dict[str, dict[str, Any]]
    tokenizers: dict[str, dict[str, Any]]
    sweep: SweepOptions | None
    classifier: ResNetClassifierConfig | None
    probe: ProbeOptions
    generation: GenerationOptions | None


# Sections that a recipe does not have.
OWN_SECTIONS: dict[str, type] = {
    "sweep": SweepOptions,
    "classifier": ResNetClassifierConfig,
    "probe": ProbeOptions,
    "generation": GenerationOptions,
}
KEYS = ("recipes", "rows", "sweep", "seeds", "tokenizers", "classifier", "probe", "generation")


def preset_options() -> dict[str, list[Option]]:
    """List the fields of a preset by section: its own as `section.field`, then those of a recipe."""
    own = {
        section: [replace(option, name=f"{section}.{option.name}") for option in describe(kind)]
        for section, kind in OWN_SECTIONS.items()
    }
    shared = {
        section: [option for option in fields if option.name not in REFUSED]
        for section, fields in recipe_options().items()
        if "ddae" not in section
    }
    return {**own, **shared}


def load_preset(path: str | Path, overrides: dict[str, Any] | None = None) -> Preset:
    """Read a preset and override some of it.

    Args:
        path (`str` or `Path`): The YAML file, or the name of a preset that comes with ldae. Its key `base` names
            another preset, which the file changes.
        overrides (`dict[str, Any]`, *optional*): Values as YAML text: a recipe's fields by name (`images`), the
            preset's own by section (`probe.epochs`), `rows` and `seeds` as lists (`0,7,12a`).

    Returns:
        [`Preset`].

    Raises:
        ValueError: For an unknown key or field, a value of the wrong type, a row that does not exist, or a field in
            which rows differ.
    """
    path = find_recipe(path)
    content = read_sections(path, extra=KEYS)
    try:
        return _build_preset(path, content, overrides or {})
    except ValueError as error:
        if not overrides:
            raise ValueError(f"{path}: {error}") from None
        load_preset(path)  # raises if the file itself is to blame
        raise


def find_rows(recipes: Path, wanted: Any) -> tuple[str, ...]:
    """Find the rows that have a recipe in a folder, in order: all of them, or those that are wanted.

    Raises:
        ValueError: If there is none, or a wanted one is missing.
    """
    present = sorted(file.stem for file in recipes.glob("*.yaml") if ROW_NAME.fullmatch(file.stem))
    if wanted in (None, "all"):
        if not present:
            raise ValueError(f"{recipes} holds no recipe of a row, NN_name.yaml; name the rows' folder in `recipes`.")
        return tuple(present)
    names = convert(wanted, list[str], "rows")
    others = [name for name in names if (recipes / f"{name}.yaml").is_file()]
    return select_rows(tuple(dict.fromkeys([*present, *others])), names)


def select_rows(rows: tuple[str, ...], wanted: list[str]) -> tuple[str, ...]:
    """Select the wanted rows, by number or name, in the order of `rows`.

    Raises:
        ValueError: For a row that is not among them.
    """
    keys = [row_key(row) for row in wanted]
    known = {row_key(row): row for row in rows}
    for key in keys:
        if key not in known:
            raise ValueError(f"rows={key!r} does not exist; choose from {', '.join(known)}.")
    return tuple(name for key, name in known.items() if key in keys)


def row_key(row: Any) -> str:
    """Return a row's number as its recipe's name begins with it: `7`, `"07"` and `"07_patch_pca"` give `"07"`.

    Example:
    ```python
    >>> from ldae.deconstruct.preset import row_key
    >>> row_key(7), row_key("12a"), row_key("07_patch_pca"), row_key("my_row")
    ('07', '12a', '07', 'my_row')

    ```
    """
    text = str(row)
    named = ROW_NAME.fullmatch(text)
    if named:
        return named[1]
    number = re.fullmatch(r"0*(\d+)([a-z]?)", text)
    return f"{int(number[1]):02d}{number[2]}" if number else text


def _build_preset(path: Path, content: dict[str, Any], overrides: dict[str, Any]) -> Preset:
    """Lay the options over a file's content, and check what is laid over the rows, and the preset's own keys."""
    sections = {name: content.pop(name) for name in ("model", *SECTIONS)}
    of_recipe = {}
    for name, value in overrides.items():
        section, _, field_name = name.rpartition(".")
        if name in ("rows", "seeds", "recipes"):
            content[name] = value
        elif section in KEYS:
            content[section] = {**(content.get(section) or {}), field_name: value}
        else:
            of_recipe[name] = value
    override(sections, of_recipe, field_owners())
    for section, values in sections.items():
        _refuse_fields(section, values)
    tokenizers = _check_tokenizers(content.get("tokenizers") or {})
    own = {name: _build_section(name, content.get(name)) for name in OWN_SECTIONS}
    own["probe"] = own["probe"] or ProbeOptions()
    recipes = path.parent / str(content.get("recipes", "."))
    if own["sweep"] is not None:
        find_rows(recipes, [own["sweep"].row])
    rows = find_rows(recipes, content.get("rows")) if "rows" in content or own["sweep"] is None else ()
    seeds = tuple(convert(content.get("seeds", [0]), list[int], "seeds"))
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds={list(seeds)} must be one or more integers, each once, such as 0,1,2.")
    return Preset(path, recipes, rows, seeds, sections, tokenizers, **own)


def _build_section(name: str, values: Any) -> Any:
    if values is None:
        return None
    if not isinstance(values, dict):
        raise ValueError(f"section {name!r} must hold `field: value` lines, not {values!r}.")
    return build(OWN_SECTIONS[name], values, name, "field")


def _refuse_fields(section: str, values: dict[str, Any]) -> None:
    """Refuse fields that cannot be laid over every row."""
    for name in values:
        if name in REFUSED:
            raise ValueError(f"{section}.{name} {REFUSED[name]}")


def _check_tokenizers(tokenizers: Any) -> dict[str, dict[str, Any]]:
    from ldae.models.configuration_ldae import CHOICES

    known = CHOICES["latent_tokenizer"]
    if not isinstance(tokenizers, dict) or not all(isinstance(fields, dict) for fields in tokenizers.values()):
        raise ValueError(
            f"tokenizers={tokenizers!r} must hold fields by type, such as `ae: {{tokenizer_images: 1000}}`."
        )
    for kind, fields in tokenizers.items():
        if kind not in known:
            raise ValueError(f"tokenizers.{kind} is not a latent tokenizer{did_you_mean(kind, known)}")
        names = [option.name for option in describe(TokenizerConfig)]
        for name in fields:
            if name not in names:
                raise ValueError(f"tokenizers.{kind}.{name} is not a field of a recipe{did_you_mean(name, names)}")
        _refuse_fields(f"tokenizers.{kind}", fields)
    return tokenizers
