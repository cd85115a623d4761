"""Everything that an output folder of `deconstruct` holds, gathered by variant and averaged over seeds."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldae.deconstruct.preset import Preset, row_key
from ldae.deconstruct.steps import ALL_STEPS, StepFolder
from ldae.deconstruct.variants import Variant, list_variants, sweep_variant
from ldae.evaluation.metrics import mean_and_stderr
from ldae.training.run_folder import RunFolder


BASELINES = "baselines"


@dataclass(frozen=True)
class Summary:
    """Mean over seeds of a number and its standard error (`None` for one seed), with the entries it was made of."""

    mean: float
    stderr: float | None
    seeds: int
    entries: tuple[dict[str, Any], ...]

    @property
    def entry(self) -> dict[str, Any]:
        """The first seed's entry of results.json: protocol, n, data set, split."""
        return self.entries[0]


@dataclass(frozen=True)
class VariantResults:
    """What is known of a variant, over its seeds.

    `runs` are the folders of finished pre-trainings, in the order of the seeds; `searched` and
    `at_paper` the encoder's probe at the point that a search chose and at the recipe's own (t = 10);
    `blocks`, `timesteps` the sweeps, by block and by input and time step; `samples` `fid` and `kid` of generated
    images; `failures` what went wrong, by seed.
    """

    variant: Variant
    runs: tuple[Path, ...]
    searched: Summary | None
    at_paper: Summary | None
    blocks: dict[int, Summary]
    timesteps: dict[str, dict[int, Summary]]
    samples: dict[str, Summary]
    failures: dict[int, str]
    images: int | None
    seconds: float
    hardware: str | None

    @property
    def accuracy(self) -> Summary | None:
        """Accuracy that stands for the variant: at the searched point, or at the recipe's own without a search."""
        return self.searched or self.at_paper

    @property
    def first_run(self) -> Path | None:
        """The finished run of the first seed, for pictures."""
        return self.runs[0] if self.runs else None


@dataclass(frozen=True)
class Collection:
    """An output folder: its variants in order, the baselines by name, and the folder itself."""

    folder: Path
    preset: Preset
    rows: list[VariantResults]
    sweep: list[VariantResults]
    baselines: dict[str, Summary]

    def row(self, key: str) -> VariantResults | None:
        """A row by its number, where it is part of the preset."""
        return next((row for row in self.rows if row.variant.key == key), None)


def run_path(output_dir: Path, variant: Variant, seed: int) -> Path:
    """The folder of one pre-training."""
    return output_dir / variant.folder / f"seed-{seed}"


def collect(preset: Preset, output_dir: Path) -> Collection:
    """Read what was measured so far.

    Args:
        preset ([`Preset`]): Which variants there should be; others that the folder holds are read too.
        output_dir (`Path`): Where they are.

    Returns:
        [`Collection`]; a variant of which nothing is there yet has empty results.
    """
    known = list_variants(preset)
    results = [collect_variant(variant, output_dir) for variant in (*known, *_others(known, output_dir))]
    results.sort(
        key=lambda result: (result.variant.tokenizer or "", result.variant.dimension or 0, result.variant.name)
    )
    baselines = StepFolder(output_dir / BASELINES).results(BASELINES)
    return Collection(
        folder=output_dir,
        preset=preset,
        rows=[r for r in results if r.variant.dimension is None],
        sweep=[r for r in results if r.variant.dimension is not None],
        baselines={
            entry["checkpoint"]: Summary(entry["value"], entry.get("stderr"), len(entry.get("seeds", [0])), (entry,))
            for entry in baselines
        },
    )


def collect_variant(variant: Variant, output_dir: Path) -> VariantResults:
    """The results of one variant over the seeds that there are."""
    found_seeds = (re.fullmatch(r"seed-(\d+)", path.name) for path in (output_dir / variant.folder).glob("seed-*"))
    seeds = sorted(int(match[1]) for match in found_seeds if match)
    runs: list[Path] = []
    failures: dict[int, str] = {}
    trained: dict[str, Any] = {}
    seconds = 0.0
    entries: dict[str, list[dict[str, Any]]] = {"row": [], "blocks": [], "timesteps": [], "samples": []}
    for seed in seeds:
        unit = StepFolder(run_path(output_dir, variant, seed))
        failure = unit.failure()
        if failure is not None and ALL_STEPS not in unit.steps():
            failures[seed] = failure
        records = RunFolder(unit.path).records()
        if not records or records[-1].get("event") != "finished":
            continue
        runs.append(unit.path)
        trained = next(r for r in reversed(records) if r.get("event") == "trained")
        seconds += trained["seconds"]
        for step, found in entries.items():
            found += unit.results(step)
    searched = [entry for entry in entries["row"] if entry["protocol"].get("point") == "searched"]
    at_paper = [entry for entry in entries["row"] if entry["protocol"].get("point", "paper") == "paper"]
    timesteps: dict[str, dict[int, Summary]] = {}
    for given in ("clean", "noisy"):
        found = [e for e in entries["timesteps"] if e["protocol"]["input"] == given]
        if found:
            timesteps[given] = _by(found, "timestep")
    return VariantResults(
        variant=variant,
        runs=tuple(runs),
        searched=summarise(searched) if searched else None,
        at_paper=summarise(at_paper) if at_paper else None,
        blocks=_by(entries["blocks"], "layer"),
        timesteps=timesteps,
        samples={kind: summarise(found) for kind in ("fid", "kid") if (found := _of_kind(entries["samples"], kind))},
        failures=failures,
        images=trained.get("images"),
        seconds=seconds,
        hardware=trained.get("hardware"),
    )


def _others(known: list[Variant], output_dir: Path) -> list[Variant]:
    """Variants that a folder holds besides the known ones: of another preset that was run into it."""
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


def summarise(entries: list[dict[str, Any]]) -> Summary:
    """Mean and standard error of entries that measured the same thing on runs of several seeds."""
    mean, stderr = mean_and_stderr([entry["value"] for entry in entries])
    return Summary(mean, stderr, len(entries), tuple(entries))


def _of_kind(entries: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """Those of `FID-1K` and the like."""
    return [entry for entry in entries if entry["metric"].partition("-")[0].lower() == kind]


def _by(entries: list[dict[str, Any]], key: str) -> dict[int, Summary]:
    keys = sorted({entry["protocol"][key] for entry in entries})
    return {k: summarise([entry for entry in entries if entry["protocol"][key] == k]) for k in keys}
