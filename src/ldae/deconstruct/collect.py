"""Gather what an output folder of `deconstruct` holds, by variant, averaged over seeds."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from ldae.deconstruct.preset import Preset, row_key
from ldae.deconstruct.steps import ALL_STEPS, StepFolder
from ldae.deconstruct.variants import Variant, list_variants, sweep_variant
from ldae.evaluation.metrics import mean_and_stderr
from ldae.models.configuration_ldae import LDAEConfig
from ldae.reports.paper_figures import PaperStep, paper_step
from ldae.training.run_folder import RunFolder


BASELINES = "baselines"
# Steps of a run, and what they measure.
STEPS = {"row": "accuracy", "blocks": "by block", "timesteps": "by time step", "samples": "samples"}


@dataclass(frozen=True)
class Summary:
    """Mean over seeds of a number, and its standard error (`None` for one seed), with the entries it summarises."""

    mean: float
    stderr: float | None
    seeds: int
    entries: tuple[dict[str, Any], ...]

    @property
    def entry(self) -> dict[str, Any]:
        """The first seed's entry of results.json, for protocol, n, data set and split."""
        return self.entries[0]


@dataclass(frozen=True)
class VariantResults:
    """Results of a variant over its seeds.

    Attributes:
        variant ([`~ldae.deconstruct.variants.Variant`]): The variant.
        runs (`tuple[Path, ...]`): Folders of finished pre-trainings, in the order of the seeds.
        searched ([`Summary`], *optional*): Accuracy at the block and time step that a search chose.
        at_paper ([`Summary`], *optional*): Accuracy at the recipe's own block and time step (t = 10).
        blocks (`dict`): Accuracy by block.
        timesteps (`dict`): Accuracy by input (`"clean"`, `"noisy"`) and time step.
        samples (`dict`): `"fid"` and `"kid"` of generated images.
        failures (`dict`): Errors by seed.
        left_out (`dict`): By seed, the steps whose means leave it out; see [`collect_variant`].
        images (`int`, *optional*), seconds (`float`), hardware (`str`, *optional*): Budget of the pre-trainings.
    """

    variant: Variant
    runs: tuple[Path, ...]
    searched: Summary | None
    at_paper: Summary | None
    blocks: dict[int, Summary]
    timesteps: dict[str, dict[int, Summary]]
    samples: dict[str, Summary]
    failures: dict[int, str]
    left_out: dict[int, list[str]]
    images: int | None
    seconds: float
    hardware: str | None

    @property
    def accuracy(self) -> Summary | None:
        """Accuracy at the searched point, or at the recipe's own if there was no search."""
        return self.searched or self.at_paper

    @property
    def number(self) -> str:
        """The row's number as the paper counts: `0`, `7`, `12a`."""
        key = self.variant.key
        return key[1:] if len(key) > 1 and key.startswith("0") else key

    @property
    def paper(self) -> PaperStep | None:
        """The paper's figures for the row."""
        return paper_step(self.variant.key)

    @property
    def label(self) -> str:
        """The row's step in words, or the name of a recipe that the paper does not have."""
        return self.variant.name.replace("_", " ") if self.paper is None else self.paper.step

    @property
    def first_run(self) -> Path | None:
        """The finished run of the first seed, for pictures."""
        return self.runs[0] if self.runs else None

    @cached_property
    def config(self) -> LDAEConfig | None:
        """Configuration of that run."""
        return None if self.first_run is None else LDAEConfig.from_pretrained(self.first_run)


@dataclass(frozen=True)
class Collection:
    """An output folder: the folder itself, its preset, its variants in order, and the baselines by name."""

    folder: Path
    preset: Preset
    rows: list[VariantResults]
    sweep: list[VariantResults]
    baselines: dict[str, Summary]

    @property
    def results(self) -> list[VariantResults]:
        """All variants, the rows first."""
        return [*self.rows, *self.sweep]

    def row(self, key: str) -> VariantResults | None:
        """Return a row by its number; `None` if there is no such row."""
        return next((row for row in self.rows if row.variant.key == key), None)


def read_recipe(folder: Path) -> dict[str, Any]:
    """Read the recipe.yaml of a run."""
    return yaml.safe_load((folder / "recipe.yaml").read_text())


def run_path(output_dir: Path, variant: Variant, seed: int) -> Path:
    """Return the folder of one pre-training."""
    return output_dir / variant.folder / f"seed-{seed}"


def collect(preset: Preset, output_dir: Path) -> Collection:
    """Read what was measured so far.

    Args:
        preset ([`Preset`]): The variants to expect; others that the folder holds are read too.
        output_dir (`Path`): The output folder.

    Returns:
        [`Collection`]; a variant without results has empty ones.
    """
    known = list_variants(preset)
    results = [collect_variant(variant, output_dir) for variant in (*known, *_others(known, output_dir))]
    results.sort(key=lambda found: (found.variant.tokenizer or "", found.variant.dimension or 0, found.variant.name))
    return Collection(
        folder=output_dir,
        preset=preset,
        rows=[result for result in results if result.variant.dimension is None],
        sweep=[result for result in results if result.variant.dimension is not None],
        baselines={
            entry["checkpoint"]: Summary(entry["value"], entry.get("stderr"), len(entry.get("seeds", [0])), (entry,))
            for entry in StepFolder(output_dir / BASELINES).results(BASELINES)
        },
    )


def collect_variant(variant: Variant, output_dir: Path) -> VariantResults:
    """Read the results of one variant over the seeds in its folder.

    If a step was measured with other settings on some seeds, the settings used last count. Seeds that were trained,
    but not measured with them, are left out of the means.
    """
    found_seeds = (re.fullmatch(r"seed-(\d+)", path.name) for path in (output_dir / variant.folder).glob("seed-*"))
    failures: dict[int, str] = {}
    trained: dict[str, Any] = {}
    seconds = 0.0
    folders: dict[int, StepFolder] = {}
    for seed in sorted(int(match[1]) for match in found_seeds if match):
        folder = StepFolder(run_path(output_dir, variant, seed))
        failure = folder.failure()
        if failure is not None and ALL_STEPS not in folder.steps():
            failures[seed] = failure
        records = RunFolder(folder.path).records()
        if not records or records[-1].get("event") != "finished":
            continue
        folders[seed] = folder
        trained = next(r for r in reversed(records) if r.get("event") == "trained")
        seconds += trained["seconds"]
    entries: dict[str, list[dict[str, Any]]] = {}
    left_out: dict[int, list[str]] = {}
    for step in STEPS:
        found = _latest(folders, step)
        entries[step] = [entry for measured in found.values() for entry in measured]
        for seed in folders.keys() - found.keys() if found else ():
            left_out.setdefault(seed, []).append(step)
    points = _group(entries["row"], lambda entry: entry["protocol"].get("point", "paper"))
    timesteps: dict[str, dict[int, Summary]] = {}
    at = _group(entries["timesteps"], lambda entry: (entry["protocol"]["input"], entry["protocol"]["timestep"]))
    for (given, timestep), summary in at.items():
        timesteps.setdefault(given, {})[timestep] = summary
    return VariantResults(
        variant=variant,
        runs=tuple(folder.path for folder in folders.values()),
        searched=points.get("searched"),
        at_paper=points.get("paper"),
        blocks=_group(entries["blocks"], lambda entry: entry["protocol"]["layer"]),
        timesteps=timesteps,
        samples=_group(entries["samples"], lambda entry: entry["metric"].partition("-")[0].lower()),
        failures=failures,
        left_out=dict(sorted(left_out.items())),
        images=trained.get("images"),
        seconds=seconds,
        hardware=trained.get("hardware"),
    )


def summarise(entries: list[dict[str, Any]]) -> Summary:
    """Compute mean and standard error of entries that measured the same thing on runs of several seeds."""
    mean, stderr = mean_and_stderr([entry["value"] for entry in entries])
    return Summary(mean, stderr, len(entries), tuple(entries))


def _latest(folders: dict[int, StepFolder], step: str) -> dict[int, list[dict[str, Any]]]:
    """Read by seed what a step measured with the settings that were used last."""
    found = {seed: entries for seed, folder in folders.items() if (entries := folder.results(step))}
    if not found:
        return {}
    last = found[max(found, key=lambda seed: folders[seed].finished(step))][0].get("settings")
    return {seed: entries for seed, entries in found.items() if entries[0].get("settings") == last}


def _others(known: list[Variant], output_dir: Path) -> list[Variant]:
    """Find variants in the folder that are not known, from another preset."""
    folders = {variant.folder for variant in known}
    others = []
    for path in sorted([*output_dir.glob("rows/*"), *output_dir.glob("sweep/*")]):
        folder = f"{path.parent.name}/{path.name}"
        at = re.fullmatch(r"(\w+)-d(\d+)", path.name)
        if folder in folders or not path.is_dir():
            continue
        if path.parent.name == "rows":
            others.append(Variant(folder, row_key(path.name), path.name, {}))
        elif at:
            others.append(sweep_variant(at[1], int(at[2]), {}))
    return others


def _group(entries: list[dict[str, Any]], key: Callable[[dict[str, Any]], Any]) -> dict[Any, Summary]:
    """Summarise entries by what they measured, in order."""
    groups: dict[Any, list[dict[str, Any]]] = {}
    for entry in entries:
        groups.setdefault(key(entry), []).append(entry)
    return {measured: summarise(groups[measured]) for measured in sorted(groups)}
