"""What is measured on a finished run: its linear probe, the sweeps over blocks and time steps, and what it must beat."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, PreTrainedModel

import ldae  # noqa: F401 - registers the models with transformers
from ldae.data import DataConfig, ImageSource, iterate_once, open_probe_images
from ldae.deconstruct.preset import ProbeOptions
from ldae.deconstruct.unit_folder import StepRecorder, UnitFolder
from ldae.evaluation.comparison import compare_linear
from ldae.evaluation.probe_features import HOLDOUT
from ldae.evaluation.protocols import LinearProbeResult, run_linear_probe
from ldae.models.configuration_ldae import LDAEConfig
from ldae.reports.paper_figures import BY_BLOCK, TOTAL_BLOCKS
from ldae.training.recipe import Recipe


ALL_BLOCKS_UP_TO = 12  # of a deeper stack, the sweep takes the paper's blocks in proportion


def probe_encoder(unit: UnitFolder, recipe: Recipe, options: ProbeOptions, device: torch.device) -> None:
    """
    Linear-probe a run's encoder at its own block and time step, as step `row`.

    Args:
        unit ([`UnitFolder`]): A finished run.
        recipe ([`Recipe`]): Of that run: its data, budget and precision.
        options ([`ProbeOptions`]): How.
        device (`torch.device`): Where.
    """
    settings = _settings(recipe, options)
    if unit.is_done("row", settings):
        return
    with unit.step("row", settings) as recorder:
        _probe(unit.path, recipe, options, device, recorder, layers=None, timesteps=None, noisy=False)


def sweep_encoder(unit: UnitFolder, recipe: Recipe, options: ProbeOptions, device: torch.device) -> None:
    """
    Sweep a run over blocks (step `blocks`) and over time steps with clean and noisy input (step `timesteps`; App. A).
    The arguments are those of [`probe_encoder`].
    """
    config = AutoConfig.from_pretrained(unit.path)
    blocks = tuple(options.blocks or swept_blocks(config.total_num_hidden_layers))
    settings = [_settings(recipe, options), blocks]
    if not unit.is_done("blocks", settings):
        with unit.step("blocks", settings) as recorder:
            _probe(unit.path, recipe, options, device, recorder, layers=blocks, timesteps=None, noisy=False)
    timesteps = swept_timesteps(options, config)
    settings = [_settings(recipe, options), timesteps]
    if not unit.is_done("timesteps", settings):
        with unit.step("timesteps", settings) as recorder:
            for noisy in (False, True):
                _probe(unit.path, recipe, options, device, recorder, layers=None, timesteps=timesteps, noisy=noisy)


def compare_baselines(
    unit: UnitFolder, run: Path, recipe: Recipe, options: ProbeOptions, device: torch.device
) -> None:
    """
    Probe what an encoder must beat, as step `baselines`: the same network untrained, its mean latents, raw pixels.

    Args:
        unit ([`UnitFolder`]): Where the results go.
        run (`Path`): A finished run, whose network and tokenizer are taken.
        recipe, options, device: As of [`probe_encoder`].
    """
    data, config = recipe.data, recipe.model_config().to_dict()
    settings = [dataclasses.asdict(options.make_protocol().settings), dataclasses.asdict(data), config]
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
    with unit.step("baselines", settings) as recorder:
        for compared in compare_linear(model, train, test, probe)[1:]:  # the first is the trained encoder itself
            protocol = {
                "name": "linear",
                "features": compared.name,
                "epochs": probe.epochs,
                "learning_rate": compared.learning_rate,
                "augmentation": [],
                "holdout": HOLDOUT,
                **size,
            }
            entry = {
                "metric": "accuracy",
                "value": compared.accuracy,
                "protocol": protocol,
                "seeds": list(probe.seeds),
            }
            entry |= {"stderr": compared.stderr} if compared.stderr is not None else {}
            n = sum(len(batch.images) for batch in test)
            recorder.add({**entry, **_about(data, sources[1]), "checkpoint": compared.name, "n": n})


def swept_blocks(total: int) -> list[int]:
    """
    Blocks of the sweep for a stack of `total`: all of a small one, else the paper's 9 to 15 of 24 in proportion.

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


def swept_timesteps(options: ProbeOptions, config: LDAEConfig) -> tuple[int, ...]:
    """The time steps of the sweep, given of 1000, in a model's own number of steps."""
    scaled = (min(t * config.num_train_timesteps // 1000, config.num_train_timesteps - 1) for t in options.timesteps)
    return tuple(dict.fromkeys(scaled))


def _settings(recipe: Recipe, options: ProbeOptions) -> list[Any]:
    """What a probe's number depends on besides its blocks and time steps."""
    return [dataclasses.asdict(options.make_protocol()), recipe.training.images]


def _probe(
    run: Path,
    recipe: Recipe,
    options: ProbeOptions,
    device: torch.device,
    recorder: StepRecorder,
    *,
    layers: tuple[int, ...] | None,
    timesteps: tuple[int, ...] | None,
    noisy: bool,
) -> None:
    cut: dict[str, Any] = {} if layers is None else {"num_hidden_layers": max(layers), "feature_layer": None}
    model = AutoModel.from_pretrained(run, **cut).to(device)
    data, bf16 = recipe.data, recipe.training.mixed_precision == "bf16"
    train, test = open_probe_images(data)
    protocol = options.make_protocol(layers or _own_layer(model), timesteps, noisy)
    result = run_linear_probe(
        model,
        train,
        test,
        protocol,
        decode_size=data.decode_size,
        batch_size=options.forward_batch_size,
        num_workers=data.num_workers,
        device=device,
        dtype=torch.bfloat16 if bf16 else None,
    )
    for index in range(len(result.columns)):
        recorder.add(_entry(result, index, data, test))


def _own_layer(model: PreTrainedModel) -> tuple[int, ...]:
    return (model.config.feature_layer or model.config.num_hidden_layers,)


def _entry(result: LinearProbeResult, index: int, data: DataConfig, test: ImageSource) -> dict[str, Any]:
    value, stderr = result.score(index)
    entry = {
        "metric": "accuracy",
        "value": value,
        "protocol": result.describe(index),
        "seeds": list(result.protocol.settings.seeds),
        "checkpoint": ".",
        "n": result.num_test,
        **_about(data, test),
    }
    return entry if stderr is None else {**entry, "stderr": stderr}


def _about(data: DataConfig, test: ImageSource) -> dict[str, Any]:
    name = data.dataset if data.dataset_config is None else f"{data.dataset}, {data.dataset_config}"
    return {"dataset": name, "split": test.description.removeprefix(f"{name} (").replace(")", "", 1)}
