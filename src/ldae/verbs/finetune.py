"""`ldae finetune CHECKPOINT [--field value ...]`: fine-tune an encoder as a classifier, or resume a run."""

from ldae.training.finetuning import compare_with_scratch, finetune, rehearse_finetuning
from ldae.training.finetuning_recipe import load_finetuning_recipe
from ldae.training.progress import describe_seconds
from ldae.verbs.inputs import table
from ldae.verbs.options.train import FinetuneOptions


SEEDS = (0, 1, 2)  # of a comparison


def run(options: FinetuneOptions) -> int:
    """Run the verb; the exit status is 0 on a finished run."""
    arguments = (options.checkpoint, options.config, options.overrides)
    if options.dry_run:
        rehearsal = rehearse_finetuning(load_finetuning_recipe(*arguments, epochs=options.epochs))
        if options.compare_from_scratch:
            runs = 2 * len(options.seeds or SEEDS)
            print(f"The comparison trains {runs} runs of this budget: {describe_seconds(runs * rehearsal.seconds)}.")
        return 0
    if not options.compare_from_scratch:
        finetune(load_finetuning_recipe(*arguments, epochs=options.epochs))
        return 0
    seeds = tuple(options.seeds or SEEDS)
    rows = [["start", "weights", "accuracy", "+-"]]
    for r in compare_with_scratch(*arguments, epochs=options.epochs, seeds=seeds):
        stderr = "-" if r.stderr is None else f"{r.stderr:.2%}"
        rows.append([r.checkpoint, r.protocol["weights"], f"{r.value:.2%}", stderr])
    print(table(rows))
    print(f"Test accuracy; +- is the standard error over seeds {list(seeds)}. The budget of both is the same.")
    return 0
