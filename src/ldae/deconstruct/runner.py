"""Work through a preset's runs one after the other, and report after each: the `deconstruct` verb."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import broadcast_object_list

from ldae.data import ImageSource, open_images, open_probe_images
from ldae.data.rows import read_labels
from ldae.deconstruct.collect import BASELINES, run_path
from ldae.deconstruct.measure import RunProbes
from ldae.deconstruct.preset import Preset, select_rows
from ldae.deconstruct.report import write_report
from ldae.deconstruct.samples import measure_samples
from ldae.deconstruct.shared_networks import claimed, shared_classifier, shared_tokenizer, update_paths
from ldae.deconstruct.steps import ALL_STEPS, StepFolder
from ldae.deconstruct.variants import Variant, list_variants, variant_recipe
from ldae.evaluation.extractor import INCEPTION, load_extractor
from ldae.files import FolderClaim
from ldae.hub.model_card import write_model_card
from ldae.places import check_outside
from ldae.processes import join_processes
from ldae.shared_work import sharing_work
from ldae.training.estimate import rehearse
from ldae.training.machine import release_memory
from ldae.training.pretraining import DenoisingTask, pretrain, without_folder
from ldae.training.progress import describe_seconds
from ldae.training.recipe import Recipe
from ldae.training.tokenizer_training import rehearse_tokenizer, trains_tokenizer


@dataclasses.dataclass(frozen=True)
class Run:
    """One variant with one seed: a pre-training and all its measurements, in a folder that a launch claims."""

    variant: Variant
    seed: int
    folder: StepFolder
    claim: FolderClaim

    @property
    def title(self) -> str:
        """Name of the variant and seed, for messages."""
        return f"{self.variant.name}, seed {self.seed}"


class Deconstruction:
    """One launch of a preset.

    Args:
        preset ([`Preset`]): The runs and how they are measured.
        output_dir (`Path`): The output folder; several launches may share it.
        rows (`list`, *optional*): Rows that this launch works on; by default all of the preset. The report always
            shows all rows of the preset.
        command (`str`): The launch's command line, for the report.

    Raises:
        ValueError: If a recipe is invalid under the preset, or a row is not part of it.
    """

    def __init__(self, preset: Preset, output_dir: Path, *, rows: list[str] | None = None, command: str = "") -> None:
        self.preset, self.output_dir, self.command = preset, Path(output_dir), command
        self.state = join_processes()
        self.device = torch.device("cpu") if self.state.device.type == "mps" else self.state.device
        self.num_classes: int | None = None
        variants = list_variants(preset)
        if rows is not None:
            wanted = select_rows(preset.rows, rows)
            variants = [variant for variant in variants if variant.name in wanted]
        for variant in variants:  # so that an error in the last recipe is found before hours are spent on the first
            check_outside(variant_recipe(variant, preset, 0, self.output_dir, None).data.dataset, self.output_dir)
        self.runs = [
            Run(variant, seed, StepFolder(path), FolderClaim(path))
            for variant in variants
            for seed in preset.seeds
            for path in [run_path(self.output_dir, variant, seed)]
        ]
        self.failures: list[str] = []
        self.started = time.perf_counter()
        self.worked = 0

    def rehearse(self) -> None:
        """Take the first steps of each variant and tokenizer, and print what all runs take, without writing.

        A perceptual loss is left out, because its network may have to be trained first.

        Raises:
            ValueError, RunError: As of [`~ldae.training.estimate.rehearse`].
        """
        total = 0.0
        for run in {run.variant.name: run for run in self.runs}.values():
            count = sum(other.variant.name == run.variant.name for other in self.runs)
            self.say(f"\n{run.variant.name}, {count} {'run' if count == 1 else 'runs'}")
            recipe = _with_tokenizer(without_folder(self.recipe(run)), perceptual_weight=0.0)
            seconds = rehearse(DenoisingTask(recipe)).seconds
            if trains_tokenizer(recipe):
                tokenizer = rehearse_tokenizer(recipe)
                seconds += tokenizer.seconds if tokenizer is not None else 0.0
            total += count * seconds
            release_memory()
        counted = f"{len(self.runs)} run{'' if len(self.runs) == 1 else 's'}"
        self.say(
            f"\nTraining takes about {describe_seconds(total)} for {counted}, without fits, probes and samples; rows "
            "that share a trained tokenizer take less."
        )

    def run(self) -> list[str]:
        """Work through all runs, and wait for those that other launches hold.

        Returns:
            `list[str]`: What failed, a line each; the same launch tries it again.

        Raises:
            ValueError: If the images have no labels, or the extractor of FID and KID is not at hand.
            SystemExit: After SIGTERM or SIGINT, when the current training is saved.
        """
        self._check()
        if self.state.is_main_process:
            self.output_dir.mkdir(parents=True, exist_ok=True)
        self.state.wait_for_everyone()
        waiting = self.runs
        while waiting:
            held = [run for run in waiting if not self._try(run)]
            if held and waiting is self.runs:
                self.say(f"Waiting for other launches, which work on {', '.join(run.title for run in held)}.")
            if held:
                time.sleep(5)
            waiting = held
        self._report()
        return self.failures

    def _check(self) -> None:
        """Refuse, before anything is trained, what the measurements after it need and would not find."""
        waiting = [run for run in self.runs if not self._is_finished(run)]
        if not waiting:
            return
        with self.state.main_process_first():  # what is downloaded or prepared is so once
            sources = open_probe_images(self.recipe(waiting[0]).data)
        for source in sources:
            if source.label_column is None:
                raise ValueError(f"{source.description} has no labels, which probes need; name label_column.")
        if self._given_extractor is not None and any(map(self._draws_samples, waiting)):
            load_extractor(self._given_extractor)

    def _try(self, run: Run) -> bool:
        """Work on a run; return `False` if another launch does."""
        place = f"[{self.runs.index(run) + 1}/{len(self.runs)}] {run.title}"
        settings = self._settings(run)
        if self._is_finished(run):
            self.say(f"{place}: was finished before")
            return True
        (acquired,) = broadcast_object_list([self.state.is_main_process and run.claim.acquire()])
        if not acquired:
            return False
        try:
            self.say(f"\n{place}{self._time_left(run)}")
            with run.folder.step(ALL_STEPS, settings):
                self._work(run)
            self._note(run, None)
        except Exception as error:
            if self.state.num_processes > 1:
                raise  # the others may be waiting for this process; the launcher ends them
            self._note(run, error)
            self.failures.append(f"{run.title}: {error}")
            self.say(f"FAILED: {self.failures[-1]}")
        finally:
            run.claim.release()
            release_memory()
        self._report()
        return True

    def _work(self, run: Run) -> None:
        """Train, probe and sample a run; steps that are finished cost nothing."""
        preset, folder = self.preset, run.folder
        recipe = self.recipe(run)
        needs_classifier = (
            recipe.tokenizer.perceptual_weight > 0 and "perceptual_model" not in preset.sections["tokenizer"]
        )
        if preset.classifier is not None and needs_classifier:
            network = shared_classifier(preset, recipe, self.output_dir)
            recipe = _with_tokenizer(recipe, perceptual_model=str(network))
        if recipe.tokenizer.tokenizer is None:
            recipe = _with_tokenizer(recipe, tokenizer=str(shared_tokenizer(recipe, self.output_dir)))
        update_paths(folder.path, recipe)
        pretrain(recipe)
        if self.state.is_main_process:
            run.claim.check()
        with sharing_work():
            self._probe(run, recipe)
        self._sample(run, recipe)
        if self.state.is_main_process:
            write_model_card(folder.path)
        self.state.wait_for_everyone()

    def _probe(self, run: Run, recipe: Recipe) -> None:
        options = self.preset.probe
        probes = RunProbes(run.folder, recipe, options, self.device)
        probes.probe()
        if run.variant.key in options.study_rows:
            probes.sweep()
            if options.baselines:
                baselines = StepFolder(self.output_dir / BASELINES)
                with claimed(baselines.path):
                    probes.compare(baselines)
        for entry in run.folder.results("row"):
            self.say(f"{run.title}: linear probe {entry['value']:.2%}")

    def _sample(self, run: Run, recipe: Recipe) -> None:
        options = self.preset.generation
        if options is None or not self._draws_samples(run):
            return
        extractor = self._given_extractor or str(shared_classifier(self.preset, recipe, self.output_dir))
        with sharing_work():
            measure_samples(run.folder, recipe, options, extractor, self.device)
        for entry in run.folder.results("samples"):
            self.say(f"{run.title}: {entry['metric']} {entry['value']:.4g} ({entry['protocol']['extractor']})")

    def _draws_samples(self, run: Run) -> bool:
        options = self.preset.generation
        if options is None or run.variant.dimension is not None:
            return False
        return options.rows is None or run.variant.key in options.rows

    @property
    def _given_extractor(self) -> str | None:
        """The extractor of FID and KID, or `None` if it is the preset's classifier, which is trained first."""
        named = self.preset.generation and self.preset.generation.extractor
        return named or (INCEPTION if self.preset.classifier is None else None)

    def _is_finished(self, run: Run) -> bool:
        return run.folder.is_done(ALL_STEPS, self._settings(run))

    def _settings(self, run: Run) -> list[Any]:
        """Collect everything that a run's numbers depend on; a run finished with the same settings is skipped."""
        recipe = variant_recipe(run.variant, self.preset, run.seed, Path(), 1)
        preset = dataclasses.asdict(self.preset)
        probe = preset["probe"]
        probe["search_timesteps"] = probe["search_timesteps"] or list(recipe.model_config().search_timesteps)
        studied = run.variant.key in self.preset.probe.study_rows
        return [recipe.resolved(), studied, probe, preset["generation"], preset["classifier"]]

    def recipe(self, run: Run) -> Recipe:
        """Build the recipe of a run."""
        recipe = variant_recipe(run.variant, self.preset, run.seed, run.folder.path, self.num_classes)
        conditional = recipe.model_config().num_class_embeds is not None
        if conditional and self.num_classes is None and "num_class_embeds" not in self.preset.sections["model"]:
            self.num_classes = count_classes(open_images(recipe.data))
            recipe = variant_recipe(run.variant, self.preset, run.seed, run.folder.path, self.num_classes)
        return recipe

    def _note(self, run: Run, error: Exception | None) -> None:
        self.worked += 1
        if self.state.is_main_process:
            run.folder.note_failure(error)

    def _report(self) -> None:
        if self.state.is_main_process:
            write_report(self.preset, self.output_dir, command=self.command)

    def _time_left(self, run: Run) -> str:
        if not self.worked:
            return ""
        left = len(self.runs) - self.runs.index(run)
        seconds = (time.perf_counter() - self.started) / self.worked * left
        return f" (about {describe_seconds(seconds)} left)"

    def say(self, text: str) -> None:
        """Print a line, from the main process only."""
        if self.state.is_main_process:
            print(text, flush=True)


def count_classes(source: ImageSource) -> int:
    """Count the classes of a source.

    Raises:
        ValueError: If there are no labels, or a stream does not name its classes.
    """
    if source.class_names is not None:
        return len(source.class_names)
    if source.label_column is None or source.streaming:
        raise ValueError(
            f"{source.description} does not say how many classes it has, which row 0 needs; give --num_class_embeds, "
            "or leave the row out (--rows)."
        )
    return max(read_labels(source)) + 1


def _with_tokenizer(recipe: Recipe, **fields: Any) -> Recipe:
    return dataclasses.replace(recipe, tokenizer=dataclasses.replace(recipe.tokenizer, **fields))
