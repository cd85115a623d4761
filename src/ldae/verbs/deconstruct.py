"""`ldae deconstruct --config PRESET.yaml --output_dir DIR`: the paper's trajectory on a data set and budget of one's own."""

import argparse
import shlex
from pathlib import Path

from ldae.deconstruct.preset import load_preset, split_list
from ldae.deconstruct.runner import Deconstruction
from ldae.training.recipe import parse_overrides


def main(arguments: list[str]) -> int:
    """Run the verb; the exit status is 0 when everything is measured, 2 where a row failed."""
    parser = argparse.ArgumentParser(
        "ldae deconstruct",
        description="Run the rows of the paper's trajectory, or latent dimensions of its tokenizers, and write report.md "
        "and report.html. The same command goes on where it was stopped; several launches with different rows, also on "
        "several machines, may share one folder.",
        epilog="Any field of a recipe can be given as --field value, and those of the preset's own sections as "
        "--probe.epochs 10 (see training/README.md for all of them).",
        allow_abbrev=False,
    )
    parser.add_argument("--config", required=True, metavar="PRESET.yaml", help="the preset")
    parser.add_argument("--output_dir", required=True, help="where everything goes")
    parser.add_argument("--rows", help="rows that this launch works on, such as 0,7,12a (default: the preset's)")
    parser.add_argument("--seeds", help="pre-training seeds, such as 0,1,2 (default: the preset's)")
    options, rest = parser.parse_known_args(arguments)
    overrides = parse_overrides(rest)
    if options.seeds is not None:
        overrides["seeds"] = options.seeds
    preset = load_preset(options.config, overrides)
    command = [
        "python",
        "training/deconstruct.py",
        "--config",
        options.config,
        "--output_dir",
        options.output_dir,
        *rest,
    ]
    launch = Deconstruction(
        preset,
        Path(options.output_dir),
        rows=None if options.rows is None else split_list(options.rows),
        command=shlex.join(command),
    )
    failures = launch.run()
    launch.say(f"\nReport: {launch.output_dir / 'report.html'}")
    if failures:
        launch.say(
            "Failed, and tried again by the same command:\n" + "\n".join(f"  {failure}" for failure in failures)
        )
        return 2
    return 0
