"""The `ldae` command: one verb, one module."""

import os
import sys
from importlib import import_module

from transformers.utils.logging import disable_progress_bar

from ldae.errors import RunError


# What each verb is for, by what one is about to do.
GROUPS = {
    "train": {
        "train_tokenizer": "fit the latent tokenizer of a recipe",
        "pretrain": "pre-train from a recipe; the same command resumes",
        "finetune": "fine-tune a checkpoint's encoder as an image classifier",
        "deconstruct": "run the paper's trajectory from DiT to l-DAE, row by row, and report it",
    },
    "measure": {
        "linear_probe": "linear probes on a checkpoint: blocks, time steps, learning rates in one pass",
        "grid_search": "the best block and time step of a checkpoint, written into its config",
        "knn": "nearest-neighbour accuracy of a checkpoint",
        "compare": "one table of several encoders, ours and other people's, under the same probes",
        "alignment": "alignment and uniformity of a checkpoint's features, by block and time step, also as it trained",
        "noise_classification": "accuracy over the noise levels: a checkpoint's features beside networks trained for it",
        "checkpoint_sweep": "accuracy and FID of every checkpoint of a run, against images seen",
    },
    "use": {
        "extract_features": "the features of a whole data set as a table, with an index where asked",
        "search": "the images of a table that are nearest to an image",
        "generate": "sample pictures of a checkpoint, and their FID and KID",
        "demo": "a page to look at a checkpoint with, here or as a Space of the Hub",
    },
    "share": {
        "export": "a checkpoint at one time step for transformers, timm, ONNX or torch.export",
        "card": "render a checkpoint's model card from its results",
        "push_to_hub": "send a checkpoint's folder to the Hub",
    },
}
VERBS = {verb: meaning for group in GROUPS.values() for verb, meaning in group.items()}


def main(arguments: list[str] | None = None) -> int:
    """
    Run a verb.

    Args:
        arguments (`list[str]`, *optional*): The verb and its own arguments; by default the command line's.

    Returns:
        `int`: the exit status: 0, or 2 where the arguments or the run made no sense.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: ldae VERB ...   (ldae VERB --help says more)\n")
        for group, verbs in GROUPS.items():
            print(f"{group}:")
            for verb, meaning in verbs.items():
                print(f"  {verb:20s} {meaning}")
        return 0 if arguments else 2
    verb, rest = arguments[0].replace("-", "_"), arguments[1:]
    if verb not in VERBS:
        print(f"ldae: {arguments[0]!r} is no verb; choose one of {', '.join(VERBS)}.", file=sys.stderr)
        return 2
    return run_verb(verb, rest)


def run_verb(verb: str, arguments: list[str]) -> int:
    """Run one verb; what the user can mend is one line on stderr, not a traceback (unless LDAE_TRACEBACK=1)."""
    disable_progress_bar()  # of transformers' loading and saving: a verb shows its own
    try:
        return import_module(f"ldae.verbs.{verb}").main(arguments)
    except (ValueError, RunError) as error:
        if os.environ.get("LDAE_TRACEBACK") == "1":
            raise
        print(f"ldae {verb}: {error}", file=sys.stderr)
        return 2
