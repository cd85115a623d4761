"""What is measured on a finished run: its linear probe, the sweeps over blocks and time steps, and what it must beat."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel

import ldae  # noqa: F401 - registers the models with transformers
from ldae.data import ImageSource, iterate_once, open_probe_images
from ldae.deconstruct.preset import ProbeOptions
from ldae.deconstruct.steps import StepFolder, StepRecorder
from ldae.evaluation.comparison import compare_baselines as compare
from ldae.evaluation.probing import run_probe
from ldae.evaluation.search import run_searched_probes
from ldae.models.configuration_ldae import LDAEConfig
from ldae.reports.paper_figures import BY_BLOCK, TOTAL_BLOCKS
from ldae.results import Result
from ldae.training.recipe import Recipe


ALL_BLOCKS_UP_TO = 12  # of a deeper stack, the sweep takes the paper's blocks in proportion


def probe_encoder(unit: StepFolder, recipe: Recipe, options: ProbeOptions, device: torch.device) -> None:
    """Linear-probe a run's encoder, as step `row`.

    A converged probe is reported at the block and time step that ridge probes choose on held-out training images
    (`"point": "searched"`), and at the recipe's own (`"point": "paper"`); Adam's probe at the latter alone.

    Args:
        unit ([`StepFolder`]): A finished run.
        recipe ([`Recipe`]): Of that run: its data, budget and precision.
        options ([`ProbeOptions`]): How.
        device (`torch.device`): Where.
    """
    config = AutoConfig.from_pretrained(unit.path)
    grid = _search_grid(options, config) if options.probe == "logistic" else None
    settings = [*_settings(recipe, options), grid]
    if unit.is_done("row", settings):
        return
    with unit.step("row", settings) as recorder:
        if grid is None:
            _probe(unit.path, recipe, options, device, recorder, point="paper")
        else:
            _search(unit.path, recipe, options, device, recorder, *grid)


def sweep_encoder(unit: StepFolder, recipe: Recipe, options: ProbeOptions, device: torch.device) -> None:
    """Sweep a run over blocks (step `blocks`) and over time steps with clean and noisy input (step `timesteps`; App.
    A). The arguments are those of [`probe_encoder`].
    """
    config = AutoConfig.from_pretrained(unit.path)
    blocks = tuple(options.blocks or swept_blocks(config.total_num_hidden_layers))
    settings = [_settings(recipe, options), blocks]
    if not unit.is_done("blocks", settings):
        with unit.step("blocks", settings) as recorder:
            _probe(unit.path, recipe, options, device, recorder, layers=blocks)
    timesteps = scale_timesteps(options.timesteps, config)
    settings = [_settings(recipe, options), timesteps]
    if not unit.is_done("timesteps", settings):
        with unit.step("timesteps", settings) as recorder:
            for noisy in (False, True):
                _probe(unit.path, recipe, options, device, recorder, timesteps=timesteps, noisy=noisy)


def compare_baselines(
    unit: StepFolder, run: Path, recipe: Recipe, options: ProbeOptions, device: torch.device
) -> None:
    """Probe what an encoder must beat, as step `baselines`: the same network untrained, its mean latents, raw pixels.

    Args:
        unit ([`StepFolder`]): Where the results go.
        run (`Path`): A finished run, whose network and tokenizer are taken.
        recipe, options, device: As of [`probe_encoder`].
    """
    data, config = recipe.data, recipe.model_config().to_dict()
    settings = [options.probe, dataclasses.asdict(options.make_protocol().settings), dataclasses.asdict(data), config]
    if unit.is_done("baselines", settings):
        return
    model: PreTrainedModel = AutoModel.from_pretrained(run).to(device)
    size = {"image_size": model.config.image_size, "num_channels": model.config.num_channels}
    sources = open_probe_images(data)
    train, test = (
        list(iterate_once(source, **size, batch_size=options.forward_batch_size, num_workers=data.num_workers))
        for source in sources
    )
    probe = options.make_protocol().settings
    n = sum(len(batch.images) for batch in test)
    with unit.step("baselines", settings) as recorder:
        # The first is the trained encoder itself.
        for each in compare(model, train, test, options.probe, settings=probe)[1:]:
            protocol = {**each.protocol, "features": each.name, **size}
            fields: dict[str, Any] = {"stderr": each.stderr, "seeds": each.seeds, "n": n, **_about(sources[1])}
            recorder.add(Result("accuracy", each.accuracy, protocol=protocol, checkpoint=each.name, **fields))


def swept_blocks(total: int) -> list[int]:
    """Blocks of the sweep for a stack of `total`: all of a small one, else the paper's 9 to 15 of 24 in proportion.

    Example:
    ```python
    >>> from ldae.deconstruct.measure import swept_blocks
    >>> swept_blocks(4), swept_blocks(24), swept_blocks(48)
    ([1, 2, 3, 4], [9, 10, 11, 12, 13, 14, 15], [18, 20, 22, 24, 26, 28, 30])

    ```
    """
    if total <= ALL_BLOCKS_UP_TO:
        return list(range(1, total + 1))
    return sorted({max(1, round(block * total / TOTAL_BLOCKS)) for block in BY_BLOCK})


def scale_timesteps(timesteps: Iterable[int], config: LDAEConfig) -> tuple[int, ...]:
    """Scale time steps, given of 1000, to a model's own number of steps, each once."""
    scaled = (min(t * config.num_train_timesteps // 1000, config.num_train_timesteps - 1) for t in timesteps)
    return tuple(dict.fromkeys(scaled))


def _search_grid(options: ProbeOptions, config: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the blocks and time steps of the search, with the recipe's own among them."""
    blocks = options.search_blocks or range(1, config.total_num_hidden_layers + 1)
    timesteps = scale_timesteps(options.search_timesteps, config)
    own_block, own_timestep = _own_point(config)
    return tuple(sorted({*blocks, own_block})), tuple(sorted({*timesteps, own_timestep}))


def _own_point(config: Any) -> tuple[int, int]:
    """Return the block and time step at which a checkpoint's features are read."""
    return config.feature_layer or config.num_hidden_layers, config.feature_timestep


def _settings(recipe: Recipe, options: ProbeOptions) -> list[Any]:
    """Collect what a probe's number depends on besides its blocks and time steps."""
    return [options.probe, dataclasses.asdict(options.make_protocol()), recipe.training.images]


def _probe(
    run: Path,
    recipe: Recipe,
    options: ProbeOptions,
    device: torch.device,
    recorder: StepRecorder,
    *,
    layers: tuple[int, ...] | None = None,
    timesteps: tuple[int, ...] | None = None,
    noisy: bool = False,
    point: str | None = None,
) -> None:
    """Probe given blocks and time steps, by default the checkpoint's own."""
    model = _load(run, layers, device)
    train, test = open_probe_images(recipe.data)
    own_block, _ = _own_point(model.config)
    protocol = options.make_protocol(layers or (own_block,), timesteps, noisy)
    result = run_probe(model, train, test, protocol, options.probe, **_reading(recipe, options, device))
    for index in range(len(result.columns)):
        recorder.add(result.result(index, {} if point is None else {"point": point}, **_about(test)))


def _search(
    run: Path,
    recipe: Recipe,
    options: ProbeOptions,
    device: torch.device,
    recorder: StepRecorder,
    layers: tuple[int, ...],
    timesteps: tuple[int, ...],
) -> None:
    """Record converged probes at the searched point and at the recipe's own."""
    own = _own_point(AutoConfig.from_pretrained(run))
    model = _load(run, layers, device)
    train, test = open_probe_images(recipe.data)
    protocol = options.make_protocol(layers, timesteps)
    found = run_searched_probes(model, train, test, protocol, given=[own], **_reading(recipe, options, device))
    recorder.add(found.result(**_about(test)))
    recorder.add(found.result(own, **_about(test)))


def _load(run: Path, layers: tuple[int, ...] | None, device: torch.device) -> PreTrainedModel:
    """Load a run's encoder, cut after the last of some blocks."""
    cut: dict[str, Any] = {} if layers is None else {"num_hidden_layers": max(layers), "feature_layer": None}
    return AutoModel.from_pretrained(run, **cut).to(device)


def _reading(recipe: Recipe, options: ProbeOptions, device: torch.device) -> dict[str, Any]:
    return {
        "decode_size": recipe.data.decode_size,
        "batch_size": options.forward_batch_size,
        "num_workers": recipe.data.num_workers,
        "device": device,
        "dtype": torch.bfloat16 if recipe.training.mixed_precision == "bf16" else None,
    }


def _about(test: ImageSource) -> dict[str, Any]:
    return {"dataset": test.name, "split": test.split}
