"""Run one GPU hour in slices: throughput, pre-training with a grid search, a sweep of latent dimensions, a DDPM.

A slice ends by itself after `--slice_seconds`: training gets SIGTERM, saves and stops. The same command resumes, until
it prints that all is done. The exit status is then 0; it is 75 if something is left, and 1 if a step failed (its
output is in the log, and the same command tries it again). Everything is in `--output_dir`: results.json with each
finished step, its command, seeds, device and versions; logs/; and the runs.

    python benchmarks/gpu.py --dataset FOLDER_OF_PARQUET --output_dir runs/gpu --slice_seconds 540
    python benchmarks/gpu.py --tiny --output_dir runs/gpu_tiny  # the same stages on digits, in seconds, also on a CPU
"""

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ldae.files import write_whole


SETTINGS = ("tiny", "dataset", "seeds", "pretrain_images", "sweep_images", "sweep_dimensions", "ddpm_images")
STAGES = ("throughput", "pretrain", "dimensions", "ddpm")
RECIPES = Path(__file__).resolve().parent.parent / "training" / "recipes"
LDAE = [sys.executable, "-c", "import sys; from ldae.cli import main; sys.exit(main())"]
SAVING_SECONDS = 45.0  # for a process to save after SIGTERM, before it is killed
MORE_TO_DO = 75  # exit status, EX_TEMPFAIL of sysexits.h


@dataclass(frozen=True)
class Step:
    """A part of a stage: a command that resumes when it is repeated, or a function that measures something.

    Attributes:
        name (`str`): Its key in results.json, after the stage's.
        work (`list[str]` or `Callable[[], dict]`): The command, or the function, which returns what it found.
        least_seconds (`float`): It only starts if the slice has this much time left, because it cannot be resumed.
        collect (`Callable[[], dict]`): Reads the results of a finished command.
        seeds (`tuple[int, ...]`): Seeds that it uses.
    """

    name: str
    work: list[str] | Callable[[], dict[str, Any]]
    least_seconds: float = 0.0
    collect: Callable[[], dict[str, Any]] = dict
    seeds: tuple[int, ...] = (0,)


@dataclass
class Slice:
    """The time of this call, and the folder with the steps that are finished so far."""

    folder: Path
    seconds: float
    began: float = field(default_factory=time.monotonic)

    @property
    def left(self) -> float:
        """Return the seconds left."""
        return self.began + self.seconds - time.monotonic()

    def run(self, stage: str, step: Step) -> str:
        """Run a step until it or the slice ends.

        Returns:
            `str`: "done" (now or before), "stopped" or "failed".
        """
        key = f"{stage}/{step.name}"
        before = read_steps(self.folder).get(key, {})
        if before.get("status") == "done":
            return "done"
        if self.left <= min(step.least_seconds, 0.9 * self.seconds):
            return "stopped"
        began = time.monotonic()
        if callable(step.work):
            status, found = "done", step.work()
        else:
            status = self._run_command(step.work, self.folder / "logs" / f"{stage}-{step.name}.log")
            found = step.collect() if status == "done" else {}
        command = ["python", *sys.argv] if callable(step.work) else step.work
        entry = {
            "status": status,
            "seconds": round(before.get("seconds", 0.0) + time.monotonic() - began, 1),
            "slices": before.get("slices", 0) + 1,
            "command": shlex.join(["ldae", *command[len(LDAE) :]] if command[: len(LDAE)] == LDAE else command),
            "seeds": list(step.seeds),
            **machine(),
            **found,
        }
        write_steps(self.folder, {**read_steps(self.folder), key: entry})
        print(f"{key}: {status} after {entry['seconds']} s", flush=True)
        return status

    def _run_command(self, command: list[str], log: Path) -> str:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as output:
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
            try:
                code = process.wait(timeout=max(0.0, self.left))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGTERM)
                try:
                    code = process.wait(timeout=SAVING_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                    code = process.wait()
                return "done" if code == 0 else "stopped"  # it may have ended by itself at that moment
            except BaseException:
                process.terminate()  # it saves, as at the end of a slice
                process.wait()
                raise
        return "done" if code == 0 else "failed"


def run_stages(current: Slice, stages: dict[str, list[Step]]) -> int:
    """Run all steps in order until the slice ends; each step of a stage needs the ones before it.

    Returns:
        `int`: the exit status: 0, `MORE_TO_DO`, or 1 if a step failed.
    """
    failed = []
    for stage, steps in stages.items():
        for step in steps:
            status = current.run(stage, step)
            if status == "stopped":
                print(f"slice ended in {stage}/{step.name}; the same command resumes", flush=True)
                return MORE_TO_DO
            if status == "failed":
                failed.append(f"{stage}/{step.name}")
                break  # the other steps of the stage need it
    if failed:
        print(f"failed: {', '.join(failed)}; see {current.folder / 'logs'}", flush=True)
        return 1
    print(f"all done: {current.folder / 'results.json'}", flush=True)
    return 0


def read_steps(folder: Path) -> dict[str, Any]:
    """Read the steps of results.json, begun and finished."""
    path = folder / "results.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def write_steps(folder: Path, steps: dict[str, Any]) -> None:
    """Write the whole results.json."""
    write_whole(folder / "results.json", json.dumps(steps, indent=2) + "\n")


def machine() -> dict[str, Any]:
    """Describe the device and versions, for results."""
    import torch
    import transformers

    device = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda, "transformers": transformers.__version__}
    return {"device": device, **versions}


def throughput_steps(options: argparse.Namespace) -> list[Step]:
    """List the measurements of the throughput stage, each about a minute with compilation."""
    import throughput

    sizes = ("nano",) if options.tiny else ("small", "base", "large")
    batch, image, compiled = (4, 32, False) if options.tiny else (256, 256, True)
    side = 512 if options.tiny else 8192
    steps = [Step("matrix_product", lambda: throughput.matrix_product(side), 5.0 if options.tiny else 30.0)]

    def measure(size: str) -> dict[str, Any]:
        peak = read_steps(Path(options.output_dir))["throughput/matrix_product"]["flops_per_second"]
        return throughput.training_step(size, image_size=image, batch_size=batch, compiled=compiled, peak=peak)

    least = 0.0 if options.tiny else 180.0
    return steps + [Step(size, lambda size=size: measure(size), least) for size in sizes]


def command_steps(options: argparse.Namespace) -> dict[str, list[Step]]:
    """List the stages that call `ldae`."""
    folder, tiny = Path(options.output_dir), options.tiny
    dataset = [] if tiny else ["--dataset", options.dataset]
    seeds = tuple(options.seeds)

    def pretraining(name: str, recipe: str, images: int, warmup: float, search: list[str]) -> list[Step]:
        run = folder / name
        length = ["--images", str(images), "--warmup_images", str(int(warmup * images)), "--probe_every_images", "0"]
        source = ["--config", str(RECIPES / recipe), "--output_dir", str(run), "--seed", str(seeds[0])]
        train = [*LDAE, "pretrain", *source, *dataset, *length]
        grid = [*LDAE, "grid_search", str(run), "--probe", "ridge", *search]
        found = partial(results_of, run)
        return [
            Step("train", train, collect=lambda: {"log": last_line(run / "metrics.jsonl")}, seeds=seeds[:1]),
            Step("grid_search", grid, 0.0 if tiny else 200.0, found),
        ]

    sweep = folder / "dimensions"
    recipe = "digits_dimensions.yaml" if tiny else "cifar10_dimensions.yaml"
    lengths = {"images": options.sweep_images, "warmup_images": options.sweep_images // 4}
    if tiny:
        shorter = ["--sweep.dimensions", "{pca: [2, 4]}", "--probe.epochs", "1", "--probe.seeds", "[0]"]
    else:
        lengths |= {"tokenizer_images": options.sweep_images, "adversarial_start_images": options.sweep_images // 4}
        shorter = ["--compile", "false"]  # the training is too short for compilation to pay off
        if options.sweep_dimensions:
            shorter += ["--sweep.dimensions", options.sweep_dimensions]
    deconstruct = [
        *[*LDAE, "deconstruct", "--config", str(RECIPES / "deconstruction" / recipe), "--output_dir", str(sweep)],
        *[*dataset, *(part for name, value in lengths.items() for part in (f"--{name}", str(value)))],
        *["--seeds", ",".join(map(str, seeds)), *shorter],
    ]
    tables = partial(results_of, sweep)
    bf16 = [] if tiny else ["--mixed_precision", "bf16"]
    small = "digits.yaml" if tiny else "cifar10_small.yaml"
    unet = "ddae_digits.yaml" if tiny else "ddae_cifar10_ddpm.yaml"
    levels = "1,11" if tiny else "0,10,20,40,80,160,320,640,999"
    return {
        "pretrain": pretraining("pretrain", small, options.pretrain_images, 0.25, ["--timesteps", levels, *bf16]),
        "dimensions": [Step("deconstruct", deconstruct, collect=tables, seeds=seeds)],
        "ddpm": pretraining("ddpm", unet, options.ddpm_images, 0.05, ["--noisy", "true", *bf16]),
    }


def results_of(run: Path) -> dict[str, Any]:
    """Read the results that a finished command wrote, by folder: those of a run, or of each seed of a sweep."""
    files = sorted([*run.glob("results.json"), *run.glob("sweep/*/*/results.json")])
    return {"results": {str(file.parent.relative_to(run)): json.loads(file.read_text("utf-8")) for file in files}}


def last_line(path: Path) -> Any:
    """Read the end of training from a run's log: seconds, hardware and which weights it exported."""
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return next((line for line in reversed(lines) if line.get("event") == "trained"), None)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; the default lengths fit one GPU hour, or take seconds with `--tiny`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default=os.environ.get("LDAE_CIFAR10"), help="CIFAR-10 (default: LDAE_CIFAR10)")
    parser.add_argument("--output_dir", required=True, help="folder of all results; the same folder resumes")
    parser.add_argument("--slice_seconds", type=float, default=540.0, help="end of this call (default: 540)")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES), help="default: all, in order")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the sweep; the others use the first")
    parser.add_argument("--pretrain_images", type=int, help="budget of cifar10_small.yaml (default: 5,000,000)")
    parser.add_argument("--sweep_images", type=int, help="budget of each variant of the sweep (default: 500,000)")
    parser.add_argument("--sweep_dimensions", help="YAML such as '{pca: [4, 16], ae: [16]}' (default: the preset's)")
    parser.add_argument("--ddpm_images", type=int, help="budget of ddae_cifar10_ddpm.yaml (default: 1,000,000)")
    parser.add_argument("--tiny", action="store_true", help="embedded digits and seconds of training, also on a CPU")
    options = parser.parse_args(arguments)
    if not options.tiny and not options.dataset:
        parser.error("dataset is missing; give --dataset FOLDER_OF_PARQUET, set LDAE_CIFAR10, or give --tiny")
    if options.tiny:
        options.dataset = "digits"
    if options.slice_seconds <= 0:
        parser.error(f"slice_seconds={options.slice_seconds} must be positive")
    lengths = {"pretrain_images": 5_000_000, "sweep_images": 500_000, "ddpm_images": 1_000_000}
    for name, images in lengths.items():
        if getattr(options, name) is None:
            setattr(options, name, 640 if options.tiny else images)
    return options


def check_settings(folder: Path, options: argparse.Namespace) -> None:
    """Record in results.json the settings that all slices share.

    Raises:
        ValueError: If the folder was started with other settings.
    """
    settings = {name: getattr(options, name) for name in SETTINGS}
    steps = read_steps(folder)
    before = steps.get("settings", settings)
    for name in SETTINGS:
        if before.get(name) != settings[name]:
            raise ValueError(
                f"{name}={settings[name]!r} differs from {before.get(name)!r} in {folder / 'results.json'}; give that "
                "value, or another --output_dir."
            )
    write_steps(folder, {"settings": settings, **steps})


def main(arguments: list[str] | None = None) -> int:
    """Run one slice."""
    options = parse(arguments)
    folder = Path(options.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    check_settings(folder, options)
    # Stop a running command as at the end of a slice, also if this process is stopped early.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(MORE_TO_DO))
    current = Slice(folder, options.slice_seconds)
    stages = command_steps(options)
    if "throughput" in options.stages:
        stages["throughput"] = throughput_steps(options)
    return run_stages(current, {name: stages[name] for name in STAGES if name in options.stages})


if __name__ == "__main__":
    sys.exit(main())
