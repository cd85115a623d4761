"""Probes of a finished run: its encoder, sweeps over blocks and time steps, and the baselines to beat."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModel

import ldae  # noqa: F401 - registers the models with transformers
from ldae.checkpoints import open_config, open_model
from ldae.data import open_probe_images
from ldae.deconstruct.preset import ProbeOptions
from ldae.deconstruct.steps import StepFolder
from ldae.evaluation.comparison import compare_baselines
from ldae.evaluation.images import ImageSet, count_images
from ldae.evaluation.probing import run_probe
from ldae.evaluation.search import run_searched_probes
from ldae.reports.paper_figures import BY_BLOCK, TOTAL_BLOCKS
from ldae.results import Result
from ldae.shared_work import is_main
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
        if self.folder.is_done("row", settings):
            return
        with self.folder.step("row", settings) as results:
            if grid is None:
                results += self._probe({"point": "paper"})
                return
            train, test = open_probe_images(self.recipe.data)
            protocol, model = options.make_protocol(*grid), self._load(max(grid[0]))
            found = run_searched_probes(model, train, test, protocol, given=[own], **self._reading())
            if is_main():
                results += [found.result(cell, dataset=test.name, split=test.split) for cell in (None, own)]

    def sweep(self) -> None:
        """Sweep blocks (step `blocks`), and time steps with clean and noisy input (step `timesteps`; App. A)."""
        config = open_config(self.folder.path)
        blocks = tuple(self.options.blocks or swept_blocks(config.total_num_hidden_layers))
        settings = [self._settings(), blocks]
        if not self.folder.is_done("blocks", settings):
            with self.folder.step("blocks", settings) as results:
                results += self._probe(layers=blocks)
        timesteps = config.scale_timesteps(self.options.timesteps)
        settings = [self._settings(), timesteps]
        if not self.folder.is_done("timesteps", settings):
            with self.folder.step("timesteps", settings) as results:
                for noisy in (False, True):
                    results += self._probe(timesteps=timesteps, noisy=noisy)

    def compare(self, baselines: StepFolder) -> None:
        """Probe the same network untrained, its mean latents and raw pixels, as the step `baselines` of a folder."""
        data, config = self.recipe.data, self.recipe.model_config().to_dict()
        kind, probe = self.options.probe, self.options.make_protocol().settings
        settings = [kind, dataclasses.asdict(probe), dataclasses.asdict(data), config]
        if baselines.is_done("baselines", settings):
            return
        model = self._load()
        size = {"image_size": model.config.image_size, "num_channels": model.config.num_channels}
        sources = open_probe_images(data)
        reading = {**size, "batch_size": self.options.forward_batch_size, "num_workers": data.num_workers}
        train, test = (list(ImageSet(source, **reading).batches()) for source in sources)
        about = {"dataset": sources[1].name, "split": sources[1].split, "n": count_images(test)}
        with baselines.step("baselines", settings) as results:
            _, *compared = compare_baselines(model, train, test, kind, settings=probe)  # the first is the encoder
            for each in compared if is_main() else ():
                protocol = {**each.protocol, "features": each.name, **size}
                fields: dict[str, Any] = {"stderr": each.stderr, "seeds": each.seeds, **about}
                results.append(Result("accuracy", each.accuracy, protocol=protocol, checkpoint=each.name, **fields))

    def _probe(
        self,
        described: dict[str, Any] | None = None,
        *,
        layers: tuple[int, ...] | None = None,
        timesteps: tuple[int, ...] | None = None,
        noisy: bool = False,
    ) -> list[Result]:
        """Probe given blocks and time steps, by default the checkpoint's own; only the main process gets results."""
        model = self._load(None if layers is None else max(layers))
        train, test = open_probe_images(self.recipe.data)
        own = (model.config.feature_layer or model.config.num_hidden_layers,)
        protocol = self.options.make_protocol(layers or own, timesteps, noisy)
        found = run_probe(model, train, test, protocol, self.options.probe, **self._reading())
        if not is_main():
            return []
        return [found.result(i, described, dataset=test.name, split=test.split) for i in range(len(found.columns))]

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
