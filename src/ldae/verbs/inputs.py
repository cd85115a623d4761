"""Inputs of the verbs that measure a checkpoint: its encoder, its images, and the place of results."""

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ldae.checkpoints import loading
from ldae.data import Batch, DataConfig, ImageSource, open_images, open_probe_images
from ldae.data.image_processor import save_image_processor
from ldae.errors import RunError, one_line
from ldae.evaluation.encoder import Encoder, JoinedEncoder
from ldae.evaluation.extractor import load_extractor
from ldae.evaluation.generation import GenerationScores
from ldae.evaluation.images import ImageSet
from ldae.evaluation.opening import open_at
from ldae.evaluation.search import write_choice
from ldae.extraction.source import FeatureTable, open_feature_tables
from ldae.files import move_into
from ldae.models.modeling_ddae import DDAEModel
from ldae.models.sources_ddae import is_diffusers_source
from ldae.places import check_place, find_data, is_local, near_path
from ldae.processes import choose_device
from ldae.results import Result, add_result, check_results
from ldae.shared_work import is_main, main_first, share
from ldae.training.progress import progress_bar
from ldae.training.recipe import build_recipe, load_recipe, read_sections


# Fields of DataConfig that say which images are read; how they are augmented is the protocol's.
DATA_OPTIONS = (
    "dataset dataset_config split eval_split image_column label_column streaming num_workers decode_size cache_dir"
).split()


@dataclass(frozen=True)
class ProbeInputs:
    """An encoder, its images and the folder of results; `layers` and `timesteps` are `None` without a choice."""

    checkpoint: str
    encoder: Encoder
    data: DataConfig
    train_source: Any  # ImageSource or FeatureTable
    test_source: Any
    layers: tuple[Any, ...] | None
    timesteps: tuple[int, ...] | None
    device: torch.device
    dtype: torch.dtype | None
    output_dir: Path
    checkpoint_name: str  # in results.json

    @property
    def about(self) -> dict[str, Any]:
        """Data set, split and checkpoint, which all results have in common."""
        return {"dataset": self.test_source.name, "split": self.test_source.split, "checkpoint": self.checkpoint_name}

    def result(self, value: float, protocol: dict[str, Any], **fields: Any) -> Result:
        """Make a result of these inputs, an accuracy unless `metric` says otherwise."""
        return Result(**{"metric": "accuracy", "value": value, "protocol": protocol, **self.about, **fields})

    @property
    def search_timesteps(self) -> tuple[int, ...]:
        """Time steps of a search: those of a feature table, or those that the encoder names."""
        if isinstance(self.train_source, FeatureTable):
            return tuple(self.train_source.noted["timesteps"] or ())
        return self.encoder.search_timesteps

    def only(self, name: str, remedy: str) -> Any:
        """Return the one block or time step; `None` if the encoder has no choice.

        Args:
            name: `layers` or `timesteps`.
            remedy: End of the message if there are several.

        Raises:
            ValueError: If there are several.
        """
        chosen = getattr(self, name)
        if chosen is not None and len(chosen) > 1:
            raise ValueError(f"{name}={','.join(map(str, chosen))} {remedy}")
        return chosen and chosen[0]

    def image_set(self, source: ImageSource | FeatureTable, batch_size: int = 256) -> Any:
        """Read a source at the encoder's size; a feature table stands for its images."""
        if isinstance(source, FeatureTable):
            return source
        size: dict[str, Any] = {"image_size": self.encoder.image_size, "num_channels": self.encoder.num_channels}
        return ImageSet(source, **size, batch_size=batch_size, num_workers=self.data.num_workers)

    def image_sets(self, batch_size: int) -> tuple[Any, Any]:
        """Read the training images and the test images."""
        return self.image_set(self.train_source, batch_size), self.image_set(self.test_source, batch_size)

    def reading(self, options: Any) -> dict[str, Any]:
        """Collect how images are read and features kept; see [`~ldae.evaluation.protocol.compute_features`]."""
        return {
            "decode_size": self.data.decode_size,
            "batch_size": options.forward_batch_size,
            "num_workers": self.data.num_workers,
            "device": self.device,
            "dtype": self.dtype,
            "memory": int(options.feature_memory * 2**30),
        }

    def show_header(self, title: str) -> None:
        """Print what is probed on what."""
        print(f"{title} of {self.checkpoint_name if self.checkpoint_name != '.' else self.output_dir}")
        print(f"training: {self.train_source.description}; test: {self.test_source.description}; on {self.device}")

    def record(self, *results: Result) -> None:
        """Add results, which have been printed, to results.json; see [`record`].

        Accuracies name the labels' column where it was chosen, so that those of coarse and fine labels stand side by
        side.
        """
        chosen = self.data.chosen_labels
        record(
            self.output_dir,
            *(
                replace(result, protocol={**result.protocol, **chosen}) if result.metric == "accuracy" else result
                for result in results
            ),
        )

    def draw(self, what: str, **figures: Figure) -> None:
        """Write figures into pictures/, by name, and say where they and the numbers are."""
        folder = self.output_dir / "pictures"
        folder.mkdir(exist_ok=True)
        for name, figure in figures.items():
            FigureCanvasAgg(figure).print_png(folder / f"{name}.png")
        paths = ", ".join(str(folder / f"{name}.png") for name in figures)
        print(f"{what}: {paths}; added to {self.output_dir / 'results.json'}")


def open_inputs(options: Any, *, every: bool = False, noisy: bool = False, labelled: bool = True) -> ProbeInputs:
    """Load a checkpoint's encoder and open its images, in the main process before the others.

    A diffusion model of diffusers is made an encoder first, in `output_dir`.

    Args:
        options: Options of a verb: the checkpoint, its images, `layers`, `timesteps`, `device`, `mixed_precision` and
            `output_dir`.
        every (`bool`, defaults to `False`): Whether all blocks are read.
        noisy (`bool`, defaults to `False`): Whether noise will be added.
        labelled (`bool`, defaults to `True`): Whether the images need labels.

    Raises:
        ValueError: If an option, the checkpoint or the data is refused.
    """
    return main_first(lambda: _open_inputs(options, every, noisy, labelled))


def _open_inputs(options: Any, every: bool, noisy: bool, labelled: bool) -> ProbeInputs:
    device = choose_device(options.device)
    results_place(options)  # refuses a Hub id without an output_dir before the Hub is asked for it
    make_encoder(options)
    output_dir, checkpoint_name = results_place(options)
    train_source: ImageSource | FeatureTable
    test_source: ImageSource | FeatureTable
    layers = options.layers
    if getattr(options, "features", None):
        if getattr(options, "join", False):
            raise ValueError(f"join=true needs images, and features={options.features} are tables; leave one out.")
        train_source, test_source = _open_tables(options)
        data = DataConfig(train_source.name, label_column=options.label_column)
        if every:
            layers, every = train_source.noted["layers"], False
    else:
        data = data_config(options)
        train_source, test_source = open_probe_images(data)
    encoder, layers, timesteps = open_at(options.checkpoint, layers, options.timesteps, every=every, noisy=noisy)
    if getattr(options, "join", False):
        encoder, layers, timesteps = JoinedEncoder(encoder, layers or (), timesteps), None, None
    for source in (train_source, test_source):
        if labelled and source.label_column is None:
            raise ValueError(f"{source.description} has no label column, which a probe needs; {_list_columns(data)}")
    check_results(output_dir)
    return ProbeInputs(
        checkpoint=options.checkpoint,
        encoder=encoder.to(device),
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


def make_encoder(options: Any) -> None:
    """Make an encoder with all blocks of a pipeline or network of diffusers, if `options.checkpoint` names one.

    The encoder is written to `options.output_dir`, which replaces the checkpoint in `options`, so that a verb writes
    its choice into its config.json, as into that of a run. An encoder that is there already is used.

    Raises:
        ValueError: If no `output_dir` is given, or [`DDAEModel.from_diffusers`] does not know the source.
    """
    source = options.checkpoint
    with loading(source):
        if not is_diffusers_source(source):
            return
    if options.output_dir is None:
        raise ValueError(
            f"checkpoint={source!r} is a diffusion model of diffusers; say with --output_dir where its encoder and "
            "the results go."
        )
    folder = Path(options.output_dir)
    options.checkpoint, options.output_dir = str(folder), None
    if (folder / "config.json").is_file():
        print(f"{folder} holds an encoder already, which is used; {source} is not read again.")
        return
    with loading(source):
        model = DDAEModel.from_diffusers(source, "last")
    default = model.adapter.default_tap(model.config, list(model.feature_layers))
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".encoder-") as staging:
        model.save_pretrained(staging)
        save_image_processor(staging, model.config)
        write_choice(staging, default, int(model.config.feature_timestep or 0))
        move_into(Path(staging), folder, last="config.json")  # so that a folder with one is whole
    print(f"{folder} holds {source} as an encoder with all of its blocks.")


def _open_tables(options: Any) -> tuple[FeatureTable, FeatureTable]:
    """Open the tables that `features` names, and check that they are the checkpoint's."""
    for name in DATA_OPTIONS:  # in their order, so that the same command names the same one
        if name in ("label_column", "num_workers", "cache_dir"):
            continue
        if (value := getattr(options, name)) is not None:
            raise ValueError(f"{name}={value} and features={options.features} are both given; give one of them.")
    train, test = open_feature_tables(options.features, options.label_column)
    train.check_checkpoint(options.checkpoint)
    return train, test


def record(output_dir: Path, *results: Result) -> None:
    """Add results, which have been printed, to results.json, and say so.

    Args:
        output_dir: The folder of results, which [`~ldae.results.check_results`] accepted before they were measured.
        results: What was measured.

    Raises:
        RunError: If it cannot be written.
    """
    try:
        add_result(output_dir, *results)
    except (OSError, ValueError) as error:
        raise RunError(
            f"output_dir={str(output_dir)!r}: results.json could not be written ({one_line(error)}); the numbers "
            "above are complete. Make room or mend the file, and repeat the command to keep them."
        ) from error


def results_place(options: Any) -> tuple[Path, str]:
    """Find the folder for results, which may not exist yet, and the checkpoint's name in them: "." in its own folder.

    Raises:
        ValueError: If the checkpoint is not a folder, and no `output_dir` is given.
    """
    folder = Path(options.checkpoint)
    if options.output_dir is None and not folder.is_dir():
        if is_local(options.checkpoint):
            check_place(options.checkpoint)
        remedy = near_path(options.checkpoint) or "; if it is a Hub id, give --output_dir for the results."
        raise ValueError(f"checkpoint={options.checkpoint!r} is not a folder{remedy}")
    output_dir = folder if options.output_dir is None else Path(options.output_dir)
    own = folder.is_dir() and output_dir.resolve() == folder.resolve()
    return output_dir, "." if own else str(options.checkpoint)


def data_config(options: Any, checkpoint: str | None = None) -> DataConfig:
    """Read which images the options name, by default those of the checkpoint's recipe.yaml.

    Raises:
        ValueError: If neither names a data set.
    """
    recipe = Path(options.checkpoint if checkpoint is None else checkpoint) / "recipe.yaml"
    given = vars(options)
    chosen = {name: given[name] for name in DATA_OPTIONS if given.get(name) is not None}
    if recipe.is_file():
        sections = read_sections(recipe, extra=("finetuning",))
        if "finetuning" in sections:
            sections = {"data": sections["data"]}
        data = build_recipe(sections).data
        if chosen.get("dataset", data.dataset) == data.dataset:
            found = build_recipe(sections, chosen).data
            return found if "dataset" in chosen else replace(found, dataset=find_data(found.dataset, recipe))
    if "dataset" not in chosen:
        raise ValueError(f"dataset is missing, and there is no {recipe} to take it from; give --dataset.")
    return load_recipe(None, chosen).data


def table(rows: list[list[str]]) -> str:
    """Align the columns of rows of text, of which the first is the head."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _list_columns(data: DataConfig) -> str:
    try:
        open_images(replace(data, label_column=""))  # no column's name: the answer lists those that there are
    except ValueError as error:
        return f"{str(error).partition('; ')[2]}. Name it with --label_column, or choose another --dataset."
    raise AssertionError("a column without a name was found")


def watched(batches: Iterable[Batch], total: int | None, activity: str) -> Iterator[Batch]:
    """Yield the batches, and advance a bar by the images of all processes."""
    with progress_bar(total, 0, is_main(), activity) as bar:
        for batch in batches:
            yield batch
            bar.update(min(len(batch.images) * share()[1], (total or 2**62) - bar.n))


def open_scores(options: Any, data: DataConfig, device: torch.device) -> GenerationScores:
    """Open what FID and KID need, as the options of scores say."""
    source = open_images(data if options.reference_split is None else replace(data, split=options.reference_split))
    return GenerationScores(
        source,
        load_extractor(options.extractor, options.inception_weights).to(device),
        num_images=options.num_scored,
        fid=options.fid is not None,
        kid=options.kid is not None,
        batch_size=options.batch_size,
        num_workers=data.num_workers,
        reference_images=options.reference_images,
        weights=weights_kind(options.checkpoint),
        watched=watched,
    )


def weights_kind(checkpoint: str) -> str:
    """Return "ema" or "raw" weights by the run's recipe.yaml, "unknown" if it has none."""
    recipe = Path(checkpoint) / "recipe.yaml"
    if not recipe.is_file():
        return "unknown"
    return "raw" if load_recipe(recipe).training.ema_decay is None else "ema"
