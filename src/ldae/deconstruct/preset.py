"""
Presets: a YAML file that says which rows of the trajectory, or which latent dimensions, are run on which data and budget.

A preset has the four sections of a recipe, laid over every row, and keys of its own; see [`Preset`].
"""

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ldae.evaluation.linear_probe import ProbeSettings
from ldae.evaluation.protocol import Protocol
from ldae.evaluation.rate_search import MAX_LR_EXTENSIONS
from ldae.models.configuration_ldae import CHOICES
from ldae.training.recipe import SECTIONS, build_section, did_you_mean, field_owners, read_sections
from ldae.training.resnet_classifier import ResNetClassifierConfig


KEYS = ("recipes", "rows", "sweep", "seeds", "tokenizers", "classifier", "probe", "generation")
ROW_NAME = re.compile(r"(\d\d[a-z]?)_\w+")  # 07_patch_pca: the row's number and what it does
# What rows differ in: laid over every row, such a field would make them one.
ROW_FIELDS = frozenset(
    "latent_tokenizer noise_schedule prediction_target input_space loss_weighting residual_weight "
    "random_resized_crop".split()
)


# What cannot be the same for every run, and what to do instead.
NOT_FOR_ALL = {
    "output_dir": "give --output_dir on the command line",
    "seed": "give seeds, or --seeds on the command line",
    "tokenizer": "rows differ in their tokenizer; name one in the recipe of a row",
    "push_to_hub": "send a finished run with `ldae push_to_hub`",
}


@dataclass
class ProbeOptions:
    """
    The `probe:` section of a preset: how every run is probed, and which runs are looked at more closely.

    Args:
        protocol: `cached` or `paper`, of [`~ldae.evaluation.protocol.Protocol`]; `paper` needs `probe: adam`.
        probe: `logistic` is solved until it has converged; `adam` trains as the papers do, at the recipe's own point.
        search_blocks: Blocks among which the point is searched that a converged probe is reported at; `None` is all.
        search_timesteps: Time steps of that search, of 1000.
        epochs, batch_size, base_lr, lr_multipliers, seeds: Of Adam's probes, as
            [`~ldae.evaluation.linear_probe.ProbeSettings`]; several rates are extended where one is chosen at the
            edge.
        crop_scale: Of the `paper` protocol.
        horizontal_flip: Whether images are mirrored; not for digits or letters.
        forward_batch_size: Images of a forward.
        baselines: Whether the untrained network, the mean latents and raw pixels are probed too.
        study_rows: Rows of the block and time-step sweeps (App. A).
        blocks: Blocks of that sweep; `None` is all of a stack of up to 12, else the paper's 9 to 15 of 24 in proportion.
        timesteps: Time steps of that sweep, of 1000, clean and noisy.
    """

    protocol: str = "cached"
    probe: str = "logistic"
    search_blocks: list[int] | None = None
    search_timesteps: list[int] = field(default_factory=lambda: [0, 10, 20, 40, 80, 160, 320, 640, 999])
    epochs: int = 90
    batch_size: int | None = None
    base_lr: float = 1e-4
    lr_multipliers: list[float] = field(default_factory=lambda: [1.0, 10.0, 100.0])
    seeds: list[int] = field(default_factory=lambda: [0])
    crop_scale: tuple[float, float] = (0.08, 1.0)
    horizontal_flip: bool = True
    forward_batch_size: int = 256
    baselines: bool = True
    study_rows: list[str] = field(default_factory=lambda: ["12"])
    blocks: list[int] | None = None
    timesteps: list[int] = field(default_factory=lambda: [0, 10, 20, 40, 80])

    def __post_init__(self) -> None:
        self.study_rows = [row_key(row) for row in self.study_rows]
        if self.probe not in ("logistic", "adam"):
            raise ValueError(f"probe.probe={self.probe!r} must be logistic or adam.")
        if self.probe == "logistic" and self.protocol == "paper":
            raise ValueError("probe.protocol=paper needs an optimiser that takes epochs; give probe.probe: adam.")
        if not all(0 <= t < 1000 for t in self.search_timesteps):
            raise ValueError(f"probe.search_timesteps={self.search_timesteps} must be from 0 to 999.")
        self.make_protocol()

    def make_protocol(
        self,
        layers: tuple[int, ...] | None = None,
        timesteps: tuple[int, ...] | None = None,
        noisy: bool = False,
    ) -> Protocol:
        """The protocol that these options stand for, at given blocks and time steps."""
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


@dataclass
class SweepOptions:
    """
    The `sweep:` section: latent dimensions of some tokenizers, each on one row (Tab. 2, Fig. 5).

    Args:
        dimensions: Latent dimensions by tokenizer: `{pca: [8, 16], pixel: [12, 48]}`.
        row: The row that they are tried on; its input and target must be in latent space where `conv_vae` is among them.
    """

    dimensions: dict[str, list[int]] = field(default_factory=dict)
    row: int | str = "07"

    def __post_init__(self) -> None:
        self.row = row_key(self.row)
        for tokenizer, dims in self.dimensions.items():
            if not isinstance(dims, list) or not all(type(d) is int and d > 0 for d in dims):
                raise ValueError(
                    f"sweep.dimensions.{tokenizer}={dims!r} is not possible; give a list such as [8, 16]."
                )


@dataclass
class GenerationOptions:
    """
    The `generation:` section: samples of rows, and FID and KID from them. Without the section there are none.

    Args:
        num_images: How many images are drawn for FID and KID.
        reference_images: How many training images they are compared with; `None` is all.
        steps: Steps of the sampler.
        batch_size: Images drawn at a time, in each process.
        guidance_scale: Of classifier-free guidance, where the row is told classes; 1 is none.
        grid: How many images are shown.
        rows: Rows that samples are drawn from; `None` is all.
        extractor: Network whose features FID and KID compare: a folder or Hub id for `AutoModel`, or `inception`; `None`
            is the preset's classifier where it has one, else `inception`.
    """

    num_images: int = 1000
    reference_images: int | None = None
    steps: int = 50
    batch_size: int = 250
    guidance_scale: float = 1.0
    grid: int = 40
    rows: list[str] | None = None
    extractor: str | None = None

    def __post_init__(self) -> None:
        for name, least in (("num_images", 2), ("steps", 1), ("batch_size", 1), ("grid", 1)):
            if getattr(self, name) < least:
                raise ValueError(
                    f"generation.{name}={getattr(self, name)} is not possible; it must be {least} or more."
                )
        if self.reference_images is not None and self.reference_images < 2:
            raise ValueError(
                f"generation.reference_images={self.reference_images} is not possible; give 2 or more, or null."
            )
        if self.rows is not None:
            self.rows = [row_key(row) for row in self.rows]


@dataclass(frozen=True)
class Preset:
    """
    What a `deconstruct` launch works through.

    `path` is the file; `recipes` the folder of the rows' recipes; `rows` their names in order; `sweep` the latent
    dimensions, or `None`; `seeds` one pre-training for each; `sections` the four sections of a recipe, laid over every
    row; `tokenizers` more fields of the tokenizer section by kind; `classifier`, `generation` are `None` where the preset has no such section.
    """

    path: Path
    recipes: Path
    rows: tuple[str, ...]
    sweep: SweepOptions | None
    seeds: tuple[int, ...]
    sections: dict[str, dict[str, Any]]
    tokenizers: dict[str, dict[str, Any]]
    classifier: ResNetClassifierConfig | None
    probe: ProbeOptions
    generation: GenerationOptions | None


def load_preset(path: str | Path, overrides: dict[str, str] | None = None) -> Preset:
    """
    Read a preset and override some of it.

    Args:
        path (`str` or `Path`): The YAML file. Its key `base` names another preset, from which it is the difference.
        overrides (`dict[str, str]`, *optional*): Values as YAML text: a recipe's fields by bare name (`images`), the
            preset's own by section (`probe.epochs`), `rows` and `seeds` as lists (`0,7,12a`).

    Returns:
        [`Preset`].

    Raises:
        ValueError: for an unknown key or field, a value of the wrong type, a row that does not exist, or a field that
            would make all rows one.
    """
    path = Path(path)
    content = read_sections(path, extra=KEYS)
    _override(content, overrides or {})
    sections = {name: content[name] for name in SECTIONS}
    for section, values in sections.items():
        _check_section(path, section, section, values)
    recipes = path.parent / content.get("recipes", ".")
    sweep = _optional(SweepOptions, content, "sweep", path)
    rows = _find_rows(recipes, content.get("rows"), path) if "rows" in content or sweep is None else ()
    if sweep is not None:
        _find_rows(recipes, [sweep.row], path)
    return Preset(
        path=path,
        recipes=recipes,
        rows=rows,
        sweep=sweep,
        seeds=_seeds(content.get("seeds", [0])),
        sections=sections,
        tokenizers=_tokenizers(content.get("tokenizers") or {}, path),
        classifier=_optional(ResNetClassifierConfig, content, "classifier", path),
        probe=_optional(ProbeOptions, {"probe": {}} | content, "probe", path),
        generation=_optional(GenerationOptions, content, "generation", path),
    )


def row_key(row: Any) -> str:
    """
    A row's number as its recipe's name begins: `7`, `"07"` and `"07_patch_pca"` are `"07"`.

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


def select_rows(rows: tuple[str, ...], wanted: list[Any]) -> tuple[str, ...]:
    """
    Those of `rows` that are wanted, in their order.

    Raises:
        ValueError: for one that is not among them.
    """
    keys = [row_key(row) for row in wanted]
    known = {row_key(row): row for row in rows}
    for key in keys:
        if key not in known:
            raise ValueError(f"rows={key!r} is no row here; there are {', '.join(known)}.")
    return tuple(name for key, name in known.items() if key in keys)


def split_list(value: Any) -> list[Any]:
    """`"0,7,12a"`, `"[0, 7]"`, a number or a list, as a list."""
    if isinstance(value, str):
        value = value.strip().strip("[]")
        return [part.strip() for part in value.split(",") if part.strip()]
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _check_section(path: Path, name: str, section: str, values: dict[str, Any]) -> None:
    """Whether fields of a recipe's section, written under `name`, can be laid over every row."""
    owners = field_owners()
    for field_name in values:
        full = f"{path}: {name}.{field_name}"
        if owners.get(field_name) != section:
            known = [other for other, owner in owners.items() if owner == section]
            raise ValueError(f"{full} is no field of a recipe{did_you_mean(field_name, known)}")
        if field_name in ROW_FIELDS:
            raise ValueError(f"{full} is what rows differ in; it belongs into a row's recipe.")
        if field_name in NOT_FOR_ALL:
            raise ValueError(f"{full} is no field of a preset; {NOT_FOR_ALL[field_name]}.")


def _tokenizers(value: Any, path: Path) -> dict[str, dict[str, Any]]:
    known = CHOICES["latent_tokenizer"]
    if not isinstance(value, dict) or not all(isinstance(fields, dict) for fields in value.values()):
        raise ValueError(
            f"{path}: tokenizers={value!r} must hold fields by kind, such as `ae: {{tokenizer_images: 1000}}`."
        )
    for kind, fields in value.items():
        if kind not in known:
            raise ValueError(f"{path}: tokenizers.{kind} is no kind of tokenizer{did_you_mean(kind, known)}")
        _check_section(path, f"tokenizers.{kind}", "tokenizer", fields)
    return value


def _find_rows(recipes: Path, wanted: Any, path: Path) -> tuple[str, ...]:
    present = tuple(sorted(file.stem for file in recipes.glob("*.yaml") if ROW_NAME.fullmatch(file.stem)))
    if wanted in (None, "all"):
        if not present:
            raise ValueError(
                f"{path}: {recipes} holds no recipe of a row, NN_name.yaml; name their folder in `recipes`."
            )
        return present
    others = tuple(str(row) for row in split_list(wanted) if (recipes / f"{row}.yaml").is_file())
    return select_rows(tuple(dict.fromkeys((*present, *others))), split_list(wanted))


def _seeds(value: Any) -> tuple[int, ...]:
    try:
        seeds = tuple(int(seed) for seed in split_list(value))
    except (TypeError, ValueError):
        seeds = ()
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds={value!r} is not possible; give one or more whole numbers, each once: 0,1,2.")
    return seeds


def _optional(kind: type, content: dict[str, Any], section: str, path: Path) -> Any:
    values = content.get(section)
    if values is None:
        return None
    if not isinstance(values, dict):
        raise ValueError(f"{path}: section {section!r} must hold `field: value` lines, not {values!r}.")
    known = [f.name for f in dataclasses.fields(kind)]
    for name in values:
        if name not in known:
            raise ValueError(f"{path}: {section}.{name} is no field of a preset{did_you_mean(name, known)}")
    return build_section(kind, values, section)


def _override(content: dict[str, Any], overrides: dict[str, str]) -> None:
    owners = field_owners()
    for name, text in overrides.items():
        section, dot, field_name = name.partition(".")
        if name in ("rows", "seeds", "recipes"):
            content[name] = text
        elif dot and section in KEYS:
            content[section] = {**(content.get(section) or {}), field_name: yaml.safe_load(text)}
        elif name in owners:
            content[owners[name]][name] = yaml.safe_load(text) if isinstance(text, str) else text
        else:
            known = [*owners, "rows", "seeds", "probe.epochs", "generation.num_images"]
            raise ValueError(f"--{name} is no field of a preset{did_you_mean(name, known)}")
