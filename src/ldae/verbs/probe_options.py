"""What verbs that measure a checkpoint have in common: their options, and the model and images these stand for."""

import argparse
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoConfig, AutoModel, PreTrainedConfig

import ldae  # noqa: F401 - registers the models with transformers
from ldae.data import DataConfig, ImageSource, open_images, open_probe_images
from ldae.evaluation.encoder import Encoder, as_encoder, open_encoder
from ldae.evaluation.feature_store import FEATURE_MEMORY
from ldae.models.taps_ddae import block_ends
from ldae.results import Result
from ldae.training.recipe import build_recipe, load_recipe, read_sections
from ldae.verbs.diffusers_source import make_encoder


# Fields of DataConfig that say which images are read; how they are augmented is the protocol's.
DATA_OPTIONS = (
    "dataset dataset_config split eval_split image_column label_column streaming num_workers decode_size cache_dir"
).split()


@dataclass(frozen=True)
class ProbeInputs:
    """The model, its images and where results go. `layers` and `timesteps` are `None` for models without them."""

    checkpoint: str
    encoder: Encoder
    config: PreTrainedConfig
    data: DataConfig
    train_source: ImageSource
    test_source: ImageSource
    layers: tuple[Any, ...] | None
    timesteps: tuple[int, ...] | None
    device: torch.device
    dtype: torch.dtype | None
    output_dir: Path
    checkpoint_name: str  # in results.json

    @property
    def about(self) -> dict[str, Any]:
        """What all results have in common: data set, split and checkpoint."""
        return {"dataset": self.test_source.name, "split": self.test_source.split, "checkpoint": self.checkpoint_name}

    def result(self, value: float, protocol: dict[str, Any], **fields: Any) -> Result:
        """Make a result of these inputs, an accuracy unless `metric` says otherwise."""
        return Result(**{"metric": "accuracy", "value": value, "protocol": protocol, **self.about, **fields})

    def show_header(self, title: str) -> None:
        """Print what is probed on what."""
        print(f"{title} of {self.checkpoint_name if self.checkpoint_name != '.' else self.output_dir}")
        print(f"training: {self.train_source.description}; test: {self.test_source.description}; on {self.device}")


def probe_parser(verb: str, description: str) -> argparse.ArgumentParser:
    """A parser with the options that all probes have."""
    parser = argparse.ArgumentParser(f"ldae {verb}", description=description, allow_abbrev=False)
    add_shared_options(parser)
    add_feature_options(parser)
    parser.add_argument("--forward_batch_size", type=int, default=256, help="images of a forward (default: 256)")
    return parser


def add_feature_options(parser: argparse.ArgumentParser) -> None:
    """The options of every verb that reads features: where in the model, and how."""
    parser.add_argument(
        "--layers",
        help="blocks, counted from 1, such as 9,10,11, or taps of a DDAE (default: the model's feature layer)",
    )
    parser.add_argument("--block_sweep", type=boolean, nargs="?", const=True, default=False, help="all blocks, E + D")
    parser.add_argument("--timesteps", help="time steps, such as 0,10,20,40,80 (default: the model's)")
    parser.add_argument("--noisy", type=boolean, nargs="?", const=True, default=False, help="corrupt the input at t")
    parser.add_argument("--mixed_precision", choices=("no", "bf16"), default="no", help="of the features")


def add_batch_norm_option(parser: argparse.ArgumentParser) -> None:
    """The option of verbs that train linear probes."""
    parser.add_argument(
        "--batch_norm",
        type=boolean,
        default=True,
        help="a BatchNorm without parameters in front of the linear layer; DDAE's public code has none (default: true)",
    )


def add_memory_option(parser: argparse.ArgumentParser) -> None:
    """The option of verbs that keep features in a store."""
    parser.add_argument(
        "--feature_memory",
        type=float,
        default=FEATURE_MEMORY / 2**30,
        help="GiB that the features of either split, and its decoded images, may each take in memory (default: 4); beyond "
        "it features go into a temporary file (in TMPDIR), and images are decoded anew for each pass",
    )


def reading_options(options: Any, inputs: ProbeInputs) -> dict[str, Any]:
    """
    How images are read and features kept, as [`~ldae.evaluation.probe_features.Reading`] has it.

    Raises:
        ValueError: for a memory below 0.
    """
    if options.feature_memory < 0:
        raise ValueError(f"feature_memory={options.feature_memory} is not possible; give a number of GiB, 0 or more.")
    return {
        "decode_size": inputs.data.decode_size,
        "batch_size": options.forward_batch_size,
        "num_workers": inputs.data.num_workers,
        "device": inputs.device,
        "dtype": inputs.dtype,
        "memory": int(options.feature_memory * 2**30),
    }


def add_shared_options(parser: argparse.ArgumentParser, data_options: Sequence[str] = DATA_OPTIONS) -> None:
    """
    The options of every verb that measures a checkpoint: what is measured, on which images, and where results go.

    Args:
        parser (`ArgumentParser`): Gets them.
        data_options (`Sequence[str]`): Those of the data section that the verb has a use for; by default all.
    """
    parser.add_argument("checkpoint", help="a run's folder, any folder that save_pretrained wrote, or a Hub id")
    parser.add_argument("--config", help="a YAML file of these options, by name; the command line wins")
    data = parser.add_argument_group("images (default: those of the run's recipe.yaml)")
    for name in data_options:
        data.add_argument(f"--{name}", help="as the recipe's data section")
    parser.add_argument("--device", help="cuda, cpu, mps (default: cuda where there is one)")
    parser.add_argument("--output_dir", help="where results go (default: the checkpoint's folder)")


def parse(parser: argparse.ArgumentParser, argv: list[str]) -> argparse.Namespace:
    """
    Parse a command line, with a `--config` file's options before its own.

    Raises:
        ValueError: where the file is no mapping of known options.
    """
    path = parser.parse_known_args(argv)[0].config
    if path is None:
        return parser.parse_args(argv)
    if not Path(path).is_file():
        raise ValueError(f"config={path!r} is no file.")
    content = yaml.safe_load(Path(path).read_text()) or {}
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold `option: value` lines.")
    known = {action.dest for action in parser._actions} - {"help", "config", "checkpoint"}
    unknown = sorted(set(content) - known)
    if unknown:
        raise ValueError(f"{path}: {', '.join(unknown)} is no option; known are {', '.join(sorted(known))}.")
    from_file = [part for name, value in content.items() for part in (f"--{name}", _as_text(value))]
    return parser.parse_args([*from_file, *argv])


def open_inputs(options: Any, labelled: bool = True) -> ProbeInputs:
    """
    Load the model, cut after the deepest block that is asked for, and open its images. A diffusion model of diffusers is
    made an encoder first, in `output_dir`.

    Args:
        options (`Namespace`): Of the command line.
        labelled (`bool`, defaults to `True`): Whether the images need labels.

    Raises:
        ValueError: naming the option, its value and the remedy.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError("probes run in one process; start this without `accelerate launch`, or with one process.")
    make_encoder(options)
    output_dir, checkpoint_name = results_place(options)
    data = data_config(options)
    config = load_config(options.checkpoint)
    if config.model_type != "ddae":
        block_choices(options, config)  # what is wrong with them is said before the images are opened
    train_source, test_source = open_probe_images(data)
    for source in (train_source, test_source):
        if labelled and source.label_column is None:
            raise ValueError(f"{source.description} has no label column, which a probe needs; {_list_columns(data)}")

    output_dir.mkdir(parents=True, exist_ok=True)
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    model, layers, timesteps = load_encoder(options, config)
    encoder = as_encoder(model).to(device)
    return ProbeInputs(
        checkpoint=options.checkpoint,
        encoder=encoder,
        config=config,
        data=data,
        train_source=train_source,
        test_source=test_source,
        layers=layers,
        timesteps=timesteps,
        device=device,
        dtype=torch.bfloat16 if options.mixed_precision == "bf16" else None,
        output_dir=output_dir,
        checkpoint_name=checkpoint_name,
    )


def load_encoder(
    options: Any, config: PreTrainedConfig | None = None
) -> tuple[Any, tuple[Any, ...] | None, tuple[int, ...] | None]:
    """
    The model, an l-DAE cut after the deepest block that is asked for, and the layers and time steps that are.

    Raises:
        ValueError: naming the option, its value and the remedy.
    """
    config = config or load_config(options.checkpoint)
    if config.model_type == "ddae":
        model, own_layer = _open_ddae(options, config)
        return model, *_ddae_choices(options, model, own_layer)
    layers, timesteps = block_choices(options, config)
    if config.model_type != "ldae":
        return open_encoder(options.checkpoint, "cpu"), None, None
    cut: dict[str, Any] = {} if layers is None else {"num_hidden_layers": max(layers), "feature_layer": None}
    return _load_model(options.checkpoint, **cut), layers, timesteps


def _load_model(checkpoint: str, **fields: Any) -> Any:
    try:
        return AutoModel.from_pretrained(checkpoint, **fields)
    except OSError as error:
        raise ValueError(f"checkpoint={checkpoint!r} cannot be loaded: {error}") from error


def results_place(options: Any) -> tuple[Path, str]:
    """
    The folder where results go, which may not be there yet, and what they call the checkpoint: "." in its own folder.

    Raises:
        ValueError: for a checkpoint that is no folder, where no `output_dir` is given.
    """
    folder = Path(options.checkpoint)
    if options.output_dir is None and not folder.is_dir():
        raise ValueError(
            f"checkpoint={options.checkpoint!r} is no folder; if it is a Hub id, say with --output_dir where the results "
            "go."
        )
    output_dir = folder if options.output_dir is None else Path(options.output_dir)
    own = folder.is_dir() and output_dir.resolve() == folder.resolve()
    return output_dir, "." if own else str(options.checkpoint)


def data_config(options: Any) -> DataConfig:
    """
    The images that the options stand for, those of the checkpoint's recipe.yaml by default.

    Raises:
        ValueError: where neither names a data set.
    """
    recipe = Path(options.checkpoint) / "recipe.yaml"
    given = vars(options)
    chosen = {name: given[name] for name in DATA_OPTIONS if given.get(name) is not None}
    if recipe.is_file():
        sections = read_sections(recipe, extra=("finetuning",))
        if "finetuning" in sections:
            sections = {"data": sections["data"]}
        data = build_recipe(sections).data
        if chosen.get("dataset", data.dataset) == data.dataset:
            return build_recipe(sections, chosen).data
    if "dataset" not in chosen:
        raise ValueError(f"dataset is missing, and there is no {recipe} to take it from; give --dataset.")
    return load_recipe(None, chosen).data


def numbers(text: str | list[Any] | None, name: str, kind: type = int) -> tuple[Any, ...] | None:
    """`"9,10"` to `(9, 10)`."""
    if text is None:
        return None
    try:
        return tuple(kind(part) for part in (text.split(",") if isinstance(text, str) else text))
    except ValueError:
        raise ValueError(
            f"{name}={text!r} is not understood; give numbers with commas between, such as 0,10."
        ) from None


def boolean(text: str) -> bool:
    """`"true"` or `"false"`."""
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is not understood; give true or false")
    return text.lower() == "true"


def table(rows: list[list[str]]) -> str:
    """Rows of text, the first of them the head, in aligned columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _as_text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def load_config(checkpoint: str) -> PreTrainedConfig:
    """
    A checkpoint's configuration.

    Raises:
        ValueError: where there is none.
    """
    try:
        return AutoConfig.from_pretrained(checkpoint)
    except OSError as error:
        raise ValueError(f"checkpoint={checkpoint!r} cannot be loaded: {error}") from error


def block_choices(options: Any, config: PreTrainedConfig) -> tuple[tuple[int, ...] | None, tuple[int, ...] | None]:
    """
    The blocks and time steps that are asked for of an l-DAE; `None` for other models.

    Raises:
        ValueError: where they do not exist, or are asked of a model that has none.
    """
    layers, timesteps = numbers(options.layers, "layers"), numbers(options.timesteps, "timesteps")
    if config.model_type != "ldae":
        if layers or timesteps or options.block_sweep or options.noisy:
            raise ValueError(
                "layers, block_sweep, timesteps and noisy are options of l-DAE and DDAE models; this is a "
                f"{config.model_type}."
            )
        return None, None
    if layers and options.block_sweep:
        raise ValueError(f"layers={options.layers} and block_sweep are both given; give one of them.")
    depth = config.total_num_hidden_layers
    if options.block_sweep:
        layers = tuple(range(1, depth + 1))
    layers = layers or (config.feature_layer or config.num_hidden_layers,)
    if not 1 <= min(layers) <= max(layers) <= depth:
        raise ValueError(f"layers={options.layers} is not possible; this model has blocks 1 to {depth}.")
    return layers, timesteps or (config.feature_timestep,)


def _open_ddae(options: Any, config: Any) -> tuple[Any, str]:
    """The encoder, up to the last block of all that are saved where blocks are to be chosen, and its own tap."""
    model = _load_model(options.checkpoint)
    own_layer = model.config.feature_layer
    if options.layers or options.block_sweep:
        # A checkpoint that was cut reaches as far as its own tap.
        with suppress(ValueError):
            model = _load_model(options.checkpoint, feature_layer="last")
    return model, own_layer


def _ddae_choices(options: Any, model: Any, own_layer: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The taps that the checkpoint reaches, of a sweep one for each block of the paper's, and time steps."""
    if options.layers and options.block_sweep:
        raise ValueError(f"layers={options.layers} and block_sweep are both given; give one of them.")
    named = options.layers.split(",") if isinstance(options.layers, str) else options.layers
    layers = tuple(map(str, named)) if named else (own_layer,)
    if options.block_sweep:
        layers = tuple(block_ends(list(model.feature_layers)))
    unknown = [name for name in layers if name not in model.feature_layers]
    if unknown:
        raise ValueError(
            f"layers={options.layers} is not possible; the checkpoint has {', '.join(model.feature_layers)}."
        )
    return layers, numbers(options.timesteps, "timesteps") or (model.config.feature_timestep,)


def _list_columns(data: DataConfig) -> str:
    try:
        open_images(replace(data, label_column=""))  # no column's name: the answer lists those that there are
    except ValueError as error:
        return f"{str(error).partition('; ')[2]}. Name it with --label_column, or choose another --dataset."
    raise AssertionError("a column without a name was found")
