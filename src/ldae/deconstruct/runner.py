"""`deconstruct`: works through a preset's runs, one after the other, and tells what it found after each."""

import dataclasses
import gc
import time
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, parse_flag_from_env

from ldae.data import ImageSource, open_images
from ldae.deconstruct.collect import BASELINES, unit_path
from ldae.deconstruct.measure import compare_baselines, probe_encoder, sweep_encoder
from ldae.deconstruct.preset import Preset, select_rows
from ldae.deconstruct.report import write_report
from ldae.deconstruct.samples import measure_samples
from ldae.deconstruct.shared import exclusively, follow_move, shared_classifier, shared_tokenizer
from ldae.deconstruct.unit_folder import UNIT, UnitFolder
from ldae.deconstruct.variants import Variant, list_variants, variant_recipe
from ldae.evaluation.extractor import INCEPTION
from ldae.files import FolderClaim
from ldae.hub.model_card import write_model_card
from ldae.training.pretraining import pretrain
from ldae.training.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class Unit:
    """One variant with one seed: a pre-training and all that is measured on it."""

    variant: Variant
    seed: int
    folder: UnitFolder
    claim: FolderClaim

    @property
    def title(self) -> str:
        return f"{self.variant.name}, seed {self.seed}"


class Deconstruction:
    """
    One launch of a preset.

    Args:
        preset ([`Preset`]): What there is to do.
        output_dir (`Path`): Where everything goes; several launches may share it.
        rows (`list`, *optional*): The rows that this launch works on; by default all of the preset. The report shows
            those of the preset in any case.
        seeds (`tuple[int, ...]`, *optional*): The seeds that it works on; by default all of the preset.
        command (`str`): The launch's command line, for the report.

    Raises:
        ValueError: where a recipe makes no sense under the preset, or a row is not part of it.
    """

    def __init__(
        self,
        preset: Preset,
        output_dir: Path,
        *,
        rows: list[str] | None = None,
        seeds: tuple[int, ...] | None = None,
        command: str = "",
    ) -> None:
        self.preset, self.output_dir, self.command = preset, Path(output_dir), command
        # The main process alone probes and draws, however long that takes; the others wait for it.
        fresh = {"cpu": parse_flag_from_env("ACCELERATE_USE_CPU"), "timeout": timedelta(days=7)}
        self.state = PartialState(**({} if PartialState._shared_state else fresh))
        self.device = torch.device("cpu") if self.state.device.type == "mps" else self.state.device
        self.num_classes: int | None = None
        variants = list_variants(preset)
        if rows is not None:
            wanted = select_rows(preset.rows, rows)
            variants = [variant for variant in variants if variant.name in wanted]
        for variant in variants:  # before hours are spent on the first
            variant_recipe(variant, preset, 0, self.output_dir, None)
        self.units = [
            Unit(variant, seed, UnitFolder(path), FolderClaim(path))
            for variant in variants
            for seed in (preset.seeds if seeds is None else seeds)
            for path in [unit_path(self.output_dir, variant, seed)]
        ]
        self.started = time.perf_counter()
        self.worked = 0

    def run(self) -> list[str]:
        """
        Work through all units.

        Returns:
            What failed, a line each; the same launch tries it again. Units that other launches hold are waited for.

        Raises:
            SystemExit: after SIGTERM or SIGINT, once the training at hand is saved.
        """
        if self.state.is_main_process:
            self.output_dir.mkdir(parents=True, exist_ok=True)
        self.state.wait_for_everyone()
        failures: list[str] = []
        waiting, polling = list(self.units), False
        while waiting:
            held_elsewhere = []
            for unit in waiting:
                outcome = self._try(unit)
                if outcome == "held":
                    held_elsewhere.append(unit)
                elif outcome != "done":
                    failures.append(outcome)
            if held_elsewhere and not polling:
                self.say(
                    f"Other launches work on {', '.join(unit.title for unit in held_elsewhere)}; waiting for them."
                )
            waiting, polling = held_elsewhere, True
            if waiting:
                time.sleep(5)
        self._report()
        return failures

    def _try(self, unit: Unit) -> str:
        """Work on a unit if nobody else does: `"done"`, `"held"` by another launch, or what failed."""
        place = f"[{self.units.index(unit) + 1}/{len(self.units)}] {unit.title}"
        settings = self._settings(unit)
        state = None
        if self.state.is_main_process:
            state = "done" if unit.folder.is_done(UNIT, settings) else "free" if unit.claim.acquire() else "held"
        (state,) = broadcast_object_list([state])
        if state == "held":
            return "held"
        if state == "done":
            self.say(f"{place}: was finished before")
            return "done"
        try:
            self.say(f"\n{place}{self._time_left(unit)}")
            with unit.folder.step(UNIT, settings) if self.state.is_main_process else nullcontext():
                self._work(unit)
            self._note(unit, None)
            outcome = "done"
        except Exception as error:
            if self.state.num_processes > 1:
                raise  # the others may be waiting for this process; the launcher ends them
            self._note(unit, error)
            outcome = f"{unit.title}: {error}"
            self.say(f"FAILED: {outcome}")
        finally:
            unit.claim.release()
            forget_run()
        self._report()
        return outcome

    def _work(self, unit: Unit) -> None:
        """Everything about one unit; what is done already costs nothing."""
        preset, folder = self.preset, unit.folder
        recipe = self._recipe(unit)
        needs_classifier = (
            recipe.tokenizer.perceptual_weight > 0 and "perceptual_model" not in preset.sections["tokenizer"]
        )
        if preset.classifier is not None and needs_classifier:
            network = shared_classifier(preset, recipe, self.output_dir, self.say)
            recipe = _with_tokenizer(recipe, perceptual_model=str(network))
        if recipe.tokenizer.tokenizer is None:
            recipe = _with_tokenizer(recipe, tokenizer=str(shared_tokenizer(recipe, self.output_dir, self.say)))
        follow_move(folder.path, recipe)
        pretrain(recipe)
        if self.state.is_main_process:
            unit.claim.check()
            self._probe(unit, recipe)
        self.state.wait_for_everyone()
        self._sample(unit, recipe)
        if self.state.is_main_process:
            write_model_card(folder.path)
        self.state.wait_for_everyone()

    def _probe(self, unit: Unit, recipe: Recipe) -> None:
        options = self.preset.probe
        probe_encoder(unit.folder, recipe, options, self.device)
        if unit.variant.key in options.study_rows:
            sweep_encoder(unit.folder, recipe, options, self.device)
            if options.baselines:
                baselines = UnitFolder(self.output_dir / BASELINES)
                with exclusively(baselines.path, self.say):
                    compare_baselines(baselines, unit.folder.path, recipe, options, self.device)
        for entry in unit.folder.results("row"):
            self.say(f"{unit.title}: linear probe {entry['value']:.2%}")

    def _sample(self, unit: Unit, recipe: Recipe) -> None:
        options = self.preset.generation
        if options is None or unit.variant.dimension is not None:
            return
        if options.rows is not None and unit.variant.key not in options.rows:
            return
        extractor = options.extractor
        if extractor is None and self.preset.classifier is not None:
            extractor = str(shared_classifier(self.preset, recipe, self.output_dir, self.say))
        measure_samples(unit.folder, recipe, options, extractor or INCEPTION, self.device)
        for entry in unit.folder.results("samples"):
            self.say(f"{unit.title}: {entry['metric']} {entry['value']:.4g} ({entry['protocol']['extractor']})")

    def _settings(self, unit: Unit) -> list[Any]:
        """All that a unit's numbers depend on: where it is done with these, there is nothing to do."""
        recipe = variant_recipe(unit.variant, self.preset, unit.seed, Path(), 1).resolved()
        preset = dataclasses.asdict(self.preset)
        studied = unit.variant.key in self.preset.probe.study_rows
        return [recipe, studied, *(preset[name] for name in ("probe", "generation", "classifier"))]

    def _recipe(self, unit: Unit) -> Recipe:
        recipe = variant_recipe(unit.variant, self.preset, unit.seed, unit.folder.path, self.num_classes)
        told = recipe.model_config().num_class_embeds is not None
        if told and self.num_classes is None and "num_class_embeds" not in self.preset.sections["model"]:
            self.num_classes = count_classes(open_images(recipe.data))
            recipe = variant_recipe(unit.variant, self.preset, unit.seed, unit.folder.path, self.num_classes)
        return recipe

    def _note(self, unit: Unit, error: Exception | None) -> None:
        self.worked += 1
        if self.state.is_main_process:
            unit.folder.note_failure(error)

    def _report(self) -> None:
        if self.state.is_main_process:
            write_report(self.preset, self.output_dir, command=self.command)

    def _time_left(self, unit: Unit) -> str:
        if not self.worked:
            return ""
        left = len(self.units) - self.units.index(unit)
        seconds = (time.perf_counter() - self.started) / self.worked * left
        return f" (about {describe_seconds(seconds)} left)"

    def say(self, text: str) -> None:
        """Print, once for all processes."""
        if self.state.is_main_process:
            print(text, flush=True)


def forget_run() -> None:
    """
    Free what a run leaves in the process: its memory on the accelerator, and its compiled code. PyTorch compiles one and
    the same function for a few models only, and refuses the next where the whole graph is asked for.
    """
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def count_classes(source: ImageSource) -> int:
    """
    Number of classes of a source.

    Raises:
        ValueError: where there are no labels, or a stream does not name its classes.
    """
    if source.class_names is not None:
        return len(source.class_names)
    if source.label_column is None or source.streaming:
        raise ValueError(
            f"{source.description} does not say how many classes it has, and row 0 is told them; give --num_class_embeds, "
            "or leave the row out (--rows)."
        )
    return max(source.dataset.with_format(None)[source.label_column]) + 1


def describe_seconds(seconds: float) -> str:
    """
    A duration in words.

    Example:

    ```python
    >>> from ldae.deconstruct.runner import describe_seconds
    >>> describe_seconds(40), describe_seconds(600), describe_seconds(9000)
    ('40 s', '10 min', '2.5 h')

    ```
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def _with_tokenizer(recipe: Recipe, **fields: Any) -> Recipe:
    return dataclasses.replace(recipe, tokenizer=dataclasses.replace(recipe.tokenizer, **fields))
