"""`ldae finetune CHECKPOINT [--field value ...]`: fine-tune an encoder as a classifier, or go on where it was stopped."""

import argparse

from ldae.training.finetuning import finetune
from ldae.training.finetuning_comparison import compare_with_scratch
from ldae.training.finetuning_recipe import load_finetuning_recipe
from ldae.training.recipe import parse_overrides
from ldae.verbs.probe_options import boolean, numbers, table


def main(arguments: list[str]) -> int:
    """Run the verb; the exit status is 0 on a finished run."""
    parser = argparse.ArgumentParser(
        "ldae finetune",
        description="Fine-tune the encoder of a checkpoint end to end, by the protocol of the l-DAE paper (App. B). The "
        "classifier goes to CHECKPOINT/finetune. The same command resumes.",
        epilog="Any field of the sections data, finetuning and training can be given as --field value (see "
        "training/README.md for all of them). Data set and flips are those of the checkpoint's recipe.yaml by default.",
        allow_abbrev=False,
    )
    parser.add_argument("checkpoint", help="a run's folder, its linear_probe/ to keep that head, or a Hub id")
    parser.add_argument("--config", metavar="FILE.yaml", help="sections data, finetuning, training")
    parser.add_argument(
        "--epochs", type=int, help="passes over the training images, instead of --images (default: 100)"
    )
    parser.add_argument(
        "--compare_from_scratch",
        type=boolean,
        nargs="?",
        const=True,
        default=False,
        help="fine-tune and train the same network from scratch, for each seed, at one budget, and compare",
    )
    parser.add_argument("--seeds", help="of the comparison (default: 0,1,2)")
    options, rest = parser.parse_known_args(arguments)
    overrides = parse_overrides(rest)
    if options.compare_from_scratch:
        seeds = numbers(options.seeds, "seeds") or (0, 1, 2)
        runs = compare_with_scratch(options.checkpoint, options.config, overrides, epochs=options.epochs, seeds=seeds)
        rows = [["start", "weights", "accuracy", "+-"]]
        for r in runs:
            rows.append([r.start, r.weights, f"{r.mean:.2%}", "-" if r.stderr is None else f"{r.stderr:.2%}"])
        print(table(rows))
        print(f"Test accuracy; +- is the standard error over seeds {list(seeds)}. The budget of both is the same.")
        return 0
    if options.seeds is not None:
        raise ValueError(f"seeds={options.seeds} is of --compare_from_scratch; for one run give --seed.")
    finetune(load_finetuning_recipe(options.checkpoint, options.config, overrides, epochs=options.epochs))
    return 0
