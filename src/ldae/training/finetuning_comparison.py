"""Comparison of fine-tuning with training the same network from scratch, over several seeds."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ldae.evaluation.metrics import mean_and_stderr
from ldae.processes import join_processes
from ldae.results import Result, add_result, read_results
from ldae.training.finetuning import finetune
from ldae.training.finetuning_recipe import load_finetuning_recipe


@dataclass(frozen=True)
class ComparedRuns:
    """Test accuracies of runs that differ only in their seed, with mean and standard error (`None` for one run)."""

    start: str  # "finetuned" or "from_scratch"
    weights: str  # "raw" or "ema"
    accuracies: tuple[float, ...]

    @property
    def mean(self) -> float:
        return mean_and_stderr(self.accuracies)[0]

    @property
    def stderr(self) -> float | None:
        return mean_and_stderr(self.accuracies)[1]


def compare_with_scratch(
    checkpoint: str,
    path: str | None = None,
    overrides: dict[str, Any] | None = None,
    *,
    epochs: int | None = None,
    seeds: Sequence[int] = (0, 1, 2),
) -> list[ComparedRuns]:
    """Fine-tune a checkpoint and train the same network from scratch, with the same images, augmentation and budget.

    The same call resumes: finished runs are not repeated.

    Args:
        checkpoint (`str`): Folder or Hub id of the encoder.
        path (`str`, *optional*): YAML file of [`~ldae.training.finetuning_recipe.load_finetuning_recipe`].
        overrides (`dict`, *optional*): Values by field name. `output_dir` is by default
            `CHECKPOINT/finetuning_comparison`.
        epochs (`int`, *optional*): Budget in passes over the training images.
        seeds (`Sequence[int]`, defaults to `(0, 1, 2)`): Seeds; there is a pair of runs for each.

    Returns:
        `list[ComparedRuns]`, which are also added to the results.json of the output folder.

    Raises:
        ValueError, RunError: As of [`~ldae.training.loop.train`].
    """
    overrides = dict(overrides or {})
    for name in ("seed", "from_scratch"):
        if name in overrides:
            raise ValueError(f"{name}={overrides[name]} does not apply to a comparison, which sets it; leave it out.")
    if len(set(seeds)) != len(seeds):
        raise ValueError(f"seeds={list(seeds)} contains a seed twice; give different ones.")
    folder = overrides.pop("output_dir", None)
    if folder is None and not Path(checkpoint).is_dir():
        raise ValueError(
            f"output_dir is missing, and checkpoint={checkpoint!r} is not a folder that can hold the runs; give one."
        )
    output_dir = Path(checkpoint) / "finetuning_comparison" if folder is None else Path(folder)
    compared = []
    for start in ("finetuned", "from_scratch"):
        entries: list[dict[str, Any]] = []
        for seed in seeds:
            own = {
                "seed": seed,
                "from_scratch": start == "from_scratch",
                "output_dir": str(output_dir / start / f"seed-{seed}"),
            }
            run = finetune(load_finetuning_recipe(checkpoint, path, overrides | own, epochs=epochs))
            entries += [entry for entry in read_results(run.path) if entry["protocol"]["name"] == "fine-tuning"]
        for weights in dict.fromkeys(entry["protocol"]["weights"] for entry in entries):
            chosen = [entry for entry in entries if entry["protocol"]["weights"] == weights]
            runs = ComparedRuns(start, weights, tuple(entry["value"] for entry in chosen))
            compared.append(runs)
            if join_processes().is_main_process:
                about: dict[str, Any] = {"seeds": seeds, "checkpoint": start, "stderr": runs.stderr}
                add_result(output_dir, replace(Result.from_entry(chosen[0]), value=runs.mean, **about))
    return compared
