"""Probes of a finished run: its encoder, sweeps over blocks and time steps, and the baselines to beat."""

import dataclasses
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModel

import ldae  # noqa: F401 - registers the models with transformers
from ldae.checkpoints import open_config, open_model
from ldae.data import open_probe_images
from ldae.deconstruct.preset import ProbeOptions
from ldae.deconstruct.steps import StepFolder, StepRecorder
from ldae.evaluation.comparison import compare_baselines
from ldae.evaluation.images import ImageSet, count_images
from ldae.evaluation.probing import run_probe
from ldae.evaluation.search import run_searched_probes
from ldae.reports.paper_figures import BY_BLOCK, TOTAL_BLOCKS
from ldae.results import Result
from ldae.shared_work import gather_objects, is_main
from ldae.training.recipe import Recipe


ALL_BLOCKS_UP_TO = 12  # size of the stacks whose blocks are all swept


@dataclass(frozen=True)
class RunProbes:
    """Probes of a finished run, each a step of its folder.

    Within [`~ldae.shared_work.sharing_work`] all processes call the methods, and the main one records.

    Args:
        folder ([`StepFolder`]): The run.
        recipe ([`Recipe`]): The run's recipe, for data, budget and precision.
        options ([`ProbeOptions`]): The kind of probe and its grids.
        device (`torch.device`): Device to compute features on.
    """

    folder: StepFolder
    recipe: Recipe
    options: ProbeOptions
    device: torch.device

    def probe(self) -> None:
        """Probe the encoder: the step `row`.

        A converged probe is reported at the block and time step that ridge probes choose on held-out training images
        (`"point": "searched"`), and at the recipe's own (`"point": "paper"`); Adam's probe only at the latter.
        """
        config, options = open_config(self.folder.path), self.options
        own = (config.feature_layer or config.num_hidden_layers, config.feature_timestep)
        grid = None
        if options.probe == "logistic":
            blocks = options.search_blocks or range(1, config.total_num_hidden_layers + 1)
            given = options.search_timesteps
            timesteps = config.search_timesteps if given is None else config.scale_timesteps(given)
            grid = (tuple(sorted({*blocks, own[0]})), tuple(sorted({*timesteps, own[1]})))
        settings = [*self._settings(), grid]
        if _is_done(self.folder, "row", settings):
            return
        with _step(self.folder, "row", settings) as recorder:
            if grid is None:
                self._probe(recorder, {"point": "paper"})
            else:
                train, test = open_probe_images(self.recipe.data)
                protocol = options.make_protocol(*grid)
                model = self._load(max(grid[0]))
                found = run_searched_probes(model, train, test, protocol, given=[own], **self._reading())
                for cell in (None, own) if recorder else ():
                    recorder.add(found.result(cell, dataset=test.name, split=test.split))

    def sweep(self) -> None:
        """Sweep blocks (step `blocks`), and time steps with clean and noisy input (step `timesteps`; App. A)."""
        config = open_config(self.folder.path)
        blocks = tuple(self.options.blocks or swept_blocks(config.total_num_hidden_layers))
        settings = [self._settings(), blocks]
        if not _is_done(self.folder, "blocks", settings):
            with _step(self.folder, "blocks", settings) as recorder:
                self._probe(recorder, layers=blocks)
        timesteps = config.scale_timesteps(self.options.timesteps)
        settings = [self._settings(), timesteps]
        if not _is_done(self.folder, "timesteps", settings):
            with _step(self.folder, "timesteps", settings) as recorder:
                for noisy in (False, True):
                    self._probe(recorder, timesteps=timesteps, noisy=noisy)

    def compare(self, baselines: StepFolder) -> None:
        """Probe the same network untrained, its mean latents and raw pixels, as the step `baselines` of a folder."""
        data, config = self.recipe.data, self.recipe.model_config().to_dict()
        kind, probe = self.options.probe, self.options.make_protocol().settings
        settings = [kind, dataclasses.asdict(probe), dataclasses.asdict(data), config]
        if _is_done(baselines, "baselines", settings):
            return
        model = self._load()
        size = {"image_size": model.config.image_size, "num_channels": model.config.num_channels}
        sources = open_probe_images(data)
        reading = {**size, "batch_size": self.options.forward_batch_size, "num_workers": data.num_workers}
        train, test = (list(ImageSet(source, **reading).batches()) for source in sources)
        about = {"dataset": sources[1].name, "split": sources[1].split, "n": count_images(test)}
        with _step(baselines, "baselines", settings) as recorder:
            compared = compare_baselines(model, train, test, kind, settings=probe)
            for each in compared[1:] if recorder else ():  # the first is the encoder
                protocol = {**each.protocol, "features": each.name, **size}
                fields: dict[str, Any] = {"stderr": each.stderr, "seeds": each.seeds, **about}
                recorder.add(Result("accuracy", each.accuracy, protocol=protocol, checkpoint=each.name, **fields))

    def _probe(
        self,
        recorder: StepRecorder | None,
        described: dict[str, Any] | None = None,
        *,
        layers: tuple[int, ...] | None = None,
        timesteps: tuple[int, ...] | None = None,
        noisy: bool = False,
    ) -> None:
        """Probe given blocks and time steps, by default the checkpoint's own."""
        model = self._load(None if layers is None else max(layers))
        train, test = open_probe_images(self.recipe.data)
        own = (model.config.feature_layer or model.config.num_hidden_layers,)
        protocol = self.options.make_protocol(layers or own, timesteps, noisy)
        result = run_probe(model, train, test, protocol, self.options.probe, **self._reading())
        if recorder is None:
            return
        for index in range(len(result.columns)):
            recorder.add(result.result(index, described, dataset=test.name, split=test.split))

    def _load(self, num_blocks: int | None = None) -> Any:
        """Load the encoder, with a given number of blocks."""
        path = self.folder.path
        cut = {} if num_blocks is None else open_config(path).cut_fields(num_blocks)
        return open_model(AutoModel, path, **cut).to(self.device)

    def _settings(self) -> list[Any]:
        """Collect what a probe's number depends on besides its blocks and time steps."""
        options = self.options
        return [options.probe, dataclasses.asdict(options.make_protocol()), self.recipe.training.images]

    def _reading(self) -> dict[str, Any]:
        return {
            "decode_size": self.recipe.data.decode_size,
            "batch_size": self.options.forward_batch_size,
            "num_workers": self.recipe.data.num_workers,
            "device": self.device,
            "dtype": torch.bfloat16 if self.recipe.training.mixed_precision == "bf16" else None,
        }


def _is_done(folder: StepFolder, step: str, settings: Any) -> bool:
    """Return what the main process finds, before it writes anything."""
    return gather_objects(folder.is_done(step, settings))[0]


def _step(folder: StepFolder, step: str, settings: Any) -> Any:
    """Open a step's recorder in the main process; the others have `None`."""
    return folder.step(step, settings) if is_main() else nullcontext()


def swept_blocks(total: int) -> list[int]:
    """Choose the blocks of the sweep: all of a small stack, else the paper's 9 to 15 of 24 in proportion.

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
