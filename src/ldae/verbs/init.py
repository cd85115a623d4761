"""`ldae init FOLDER [--minutes N]`: look at images and machine, and write a recipe that fits both."""

import shlex
import time
from pathlib import Path
from typing import Any

import psutil

from ldae.data import DataConfig, open_images, survey_images
from ldae.files import write_whole
from ldae.places import check_outside
from ldae.training.machine import look_at_machine
from ldae.training.own_recipe import Planner
from ldae.training.progress import describe_seconds
from ldae.verbs.options.start import InitOptions


def init(options: InitOptions) -> int:
    """Run `ldae init`."""
    started = time.time() - psutil.Process().create_time()  # what every command takes before it opens the images
    name = Path(options.folder).expanduser().resolve().name or "images"
    output = Path(options.output or f"{name}.yaml")
    if output.exists() and not options.overwrite:
        raise ValueError(f"output={str(output)!r} exists; give another --output, or --overwrite true.")
    data, output_dir = _data_fields(options), options.output_dir or f"runs/{name}"
    check_outside(data["dataset"], output_dir)
    source = open_images(DataConfig(**data))
    survey = survey_images(source, options.examine)
    print("\n".join(survey.lines()), flush=True)
    machine = look_at_machine()
    print(f"Machine: {machine}", flush=True)
    planner = Planner(
        data=data,
        source=source,
        survey=survey,
        machine=machine,
        seconds=60 * options.minutes,
        started=started,
        output_dir=output_dir,
        size=options.size,
        image_size=options.image_size,
    )
    recipe = planner.plan()
    print(f"Training: {recipe.summary}; about {describe_seconds(planner.seconds)} in all", flush=True)
    for note in recipe.notes:
        print(f"Note: {note}")
    command = f"ldae pretrain --config {shlex.quote(str(output))}"
    output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(output, recipe.text(_head(options, command, f"{machine}\n{recipe.summary}")))
    print(f"Wrote {output}. Next:\n  {command}")
    return 0


def _data_fields(options: InitOptions) -> dict[str, Any]:
    """Return the fields that say which images are read; the path of a folder leads there from everywhere."""
    path = Path(options.folder).expanduser()
    fields: dict[str, Any] = {
        "dataset": str(path.resolve()) if path.exists() else options.folder,
        "split": options.split,
    }
    fields |= {name: getattr(options, name) for name in ("image_column", "label_column") if getattr(options, name)}
    return {name: value for name, value in fields.items() if (name, value) != ("split", "train")}


def _head(options: InitOptions, command: str, facts: str) -> str:
    """Write the comment at the top of a recipe."""
    return f"""l-DAE on {options.folder}, for about {describe_seconds(60 * options.minutes)}; written by `ldae init`.

  {command}              trains, and resumes where it was stopped
  {command} --dry_run    tells what that takes

Measured on this machine: {facts.replace(chr(10), chr(10) + "  ")}

What to change first: `images` (the budget), then `size`, then `image_size` with `patch_size`. Every field can also be
given on the command line: --images 1_000_000. `ldae pretrain --help` lists all of them."""
