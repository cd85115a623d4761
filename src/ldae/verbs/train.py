"""The verbs that train: a latent tokenizer, a denoiser, a classifier, and the rows of the paper's trajectory.

Each takes its options and returns the exit status. The same command resumes; on a finished run it changes nothing.
"""

import shlex
import sys
from pathlib import Path

from ldae.deconstruct.preset import load_preset
from ldae.deconstruct.runner import Deconstruction
from ldae.errors import one_line
from ldae.processes import join_processes
from ldae.training.finetuning import compare_with_scratch, rehearse_finetuning
from ldae.training.finetuning import finetune as fine_tune
from ldae.training.finetuning_recipe import load_finetuning_recipe
from ldae.training.pretraining import pretrain as pre_train
from ldae.training.pretraining import rehearse_pretraining
from ldae.training.progress import describe_seconds
from ldae.training.recipe import load_recipe
from ldae.training.tokenizer_training import rehearse_tokenizer
from ldae.training.tokenizer_training import train_tokenizer as train_a_tokenizer
from ldae.verbs.inputs import table
from ldae.verbs.options.train import DeconstructOptions, FinetuneOptions, PretrainOptions, TrainTokenizerOptions


COMPARED_SEEDS = (0, 1, 2)


def train_tokenizer(options: TrainTokenizerOptions) -> int:
    """Run `ldae train_tokenizer`."""
    recipe = load_recipe(options.config, options.overrides)
    if options.dry_run:
        rehearse_tokenizer(recipe)
        return 0
    folder = train_a_tokenizer(recipe)
    join_processes().print(f"Finished: pre-train with --tokenizer {folder}")
    return 0


def pretrain(options: PretrainOptions) -> int:
    """Run `ldae pretrain`."""
    recipe = load_recipe(options.config, options.overrides)
    if options.dry_run:
        rehearse_pretraining(recipe)
    else:
        pre_train(recipe)
    return 0


def finetune(options: FinetuneOptions) -> int:
    """Run `ldae finetune`."""
    seeds = tuple(options.seeds or COMPARED_SEEDS)
    arguments = (options.checkpoint, options.config, options.overrides)
    if options.dry_run:
        rehearsal = rehearse_finetuning(load_finetuning_recipe(*arguments, epochs=options.epochs))
        if options.compare_from_scratch:
            runs = 2 * len(seeds)
            print(f"The comparison trains {runs} runs of this budget: {describe_seconds(runs * rehearsal.seconds)}.")
    elif options.compare_from_scratch:
        rows = [["start", "weights", "accuracy", "+-"]]
        for r in compare_with_scratch(*arguments, epochs=options.epochs, seeds=seeds):
            stderr = "-" if r.stderr is None else f"{r.stderr:.2%}"
            rows.append([r.checkpoint, r.protocol["weights"], f"{r.value:.2%}", stderr])
        print(table(rows))
        print(f"Test accuracy; +- is the standard error over seeds {list(seeds)}. The budget of both is the same.")
    else:
        fine_tune(load_finetuning_recipe(*arguments, epochs=options.epochs))
    return 0


def deconstruct(options: DeconstructOptions) -> int:
    """Run `ldae deconstruct`; the exit status is 2 if a row failed."""
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
    if failures and launch.state.is_main_process:
        count = f"{len(failures)} of {len(launch.runs)} runs failed; the same command tries again"
        print(f"ldae deconstruct: {count}: {one_line('; '.join(failures))}", file=sys.stderr)
    return 2 if failures else 0
