"""`ldae deconstruct --config PRESET.yaml --output_dir DIR`: the paper's trajectory on your own data set and budget."""

import shlex
from pathlib import Path

from ldae.deconstruct.preset import load_preset
from ldae.deconstruct.rehearsal import rehearse_rows
from ldae.deconstruct.runner import Deconstruction
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
        rehearse_rows(launch)
        return 0
    failures = launch.run()
    launch.say(f"\nReport: {launch.output_dir / 'report.html'}")
    if failures:
        launch.say("Failed; the same command tries again:\n" + "\n".join(f"  {failure}" for failure in failures))
        return 2
    return 0
