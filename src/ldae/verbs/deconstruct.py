"""`ldae deconstruct --config PRESET.yaml --output_dir DIR`: the paper's trajectory on your own data set and budget."""

import shlex
import sys
from pathlib import Path

from ldae.deconstruct.preset import load_preset
from ldae.deconstruct.runner import Deconstruction
from ldae.errors import one_line
from ldae.verbs.options.train import DeconstructOptions


def run(options: DeconstructOptions) -> int:
    """Run the verb; the exit status is 0 when everything is measured, 2 if a row failed."""
    overrides = dict(options.overrides)
    command = ["python", "training/deconstruct.py", "--config", options.config, "--output_dir", options.output_dir]
    command += [word for name, value in overrides.items() for word in (f"--{name}", value)]
    if options.seeds is not None:
        overrides["seeds"] = options.seeds
    launch = Deconstruction(
        load_preset(options.config, overrides),
        Path(options.output_dir),
        rows=options.rows,
        command=shlex.join(command),
    )
    if options.dry_run:
        launch.rehearse()
        return 0
    failures = launch.run()
    launch.say(f"\nReport: {launch.output_dir / 'report.html'}")
    if failures:
        if launch.state.is_main_process:
            count = f"{len(failures)} of {len(launch.runs)} runs failed; the same command tries again"
            print(f"ldae deconstruct: {count}: {one_line('; '.join(failures))}", file=sys.stderr)
        return 2
    return 0
