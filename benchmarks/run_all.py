"""Run the benchmarks of `make bench`, each in its own process, and print one table of their ratios.

A ratio is the peer's time / ours: above 1, ours is faster. The exit status is 1 if a benchmark could not run; a missed
target is a result, not a failure.

    python benchmarks/run_all.py [--only encoder pca] [--output FILE.json]
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path

import torch
import transformers


BENCHMARKS = (
    "encoder",
    "export",
    "training_step",
    "dit",
    "truncation",
    "grid_search",
    "logistic_probe",
    "tokenizer",
    "latent_cache",
    "pca",
    "data",
    "decoding",
    "extraction",
)
FOLDER = Path(__file__).parent
# A line of harness.Comparison.
LINE = re.compile(
    r"(?P<name>.+): (?P<median>[\d.]+)x \[(?P<low>[\d.]+), (?P<high>[\d.]+)\] of (?P<pairs>\d+) pairs; "
    r"ours (?P<ours_ms>[\d.]+) ms, peer (?P<peer_ms>[\d.]+) ms, threads (?P<threads>\d+)"
    r"(; target (?P<target>[\d.]+)x (?P<verdict>reached|MISSED))?"
)


def run(name: str) -> dict:
    """Run one benchmark, print its lines as they come, and collect them."""
    start, lines = time.perf_counter(), []
    command = [sys.executable, "-u", str(FOLDER / f"{name}.py")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            lines.append(line.rstrip())
    comparisons = [match.groupdict() for line in lines if (match := LINE.fullmatch(line))]
    return {
        "benchmark": name,
        "exit": process.returncode,
        "seconds": round(time.perf_counter() - start, 1),
        "comparisons": comparisons,
        "lines": lines,
    }


def describe_machine() -> dict:
    """Describe the machine and the versions, which the numbers depend on."""
    return {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=BENCHMARKS, default=BENCHMARKS)
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="write everything there too")
    arguments = parser.parse_args()
    machine = describe_machine()
    print(", ".join(f"{key} {value}" for key, value in machine.items()), flush=True)
    results = [run(name) for name in arguments.only]

    print(f"\n{'peer time / our time':<58} {'median':>7} {'95 % interval':>15} {'target':>7}")
    for row in (comparison for result in results for comparison in result["comparisons"]):
        interval = f"[{row['low']}, {row['high']}]"
        target = "" if row["target"] is None else f"{row['target']:>7} {row['verdict']}"
        print(f"{row['name']:<58} {row['median']:>7} {interval:>15} {target}".rstrip())
    for result in results:
        print(
            f"{result['benchmark']}: {result['seconds']} s"
            + (f", FAILED ({result['exit']})" if result["exit"] else "")
        )
    if arguments.output:
        arguments.output.write_text(json.dumps({"machine": machine, "results": results}, indent=2) + "\n")
    return int(any(result["exit"] for result in results))


if __name__ == "__main__":
    sys.exit(main())
