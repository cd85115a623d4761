"""The `ldae` command: it reads a verb's options, then imports what the verb needs and runs it."""

import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from ldae import stopping
from ldae.errors import RunError
from ldae.options import did_you_mean, parse
from ldae.options.help import help_text, option_groups


# What each verb is for. Its options and its help are a class in ldae.verbs.options.
GROUPS = {
    "train": {
        "train_tokenizer": "fit the latent tokenizer of a recipe",
        "pretrain": "pre-train from a recipe; the same command resumes",
        "finetune": "fine-tune a checkpoint's encoder as an image classifier",
        "deconstruct": "run the paper's trajectory from DiT to l-DAE and report it",
    },
    "measure": {
        "linear_probe": "linear probes over blocks, time steps and learning rates",
        "grid_search": "find the best block and time step, and write them into the config",
        "knn": "nearest-neighbour accuracy",
        "compare": "one table of several encoders under the same probes",
        "alignment": "alignment and uniformity by block and time step",
        "noise_classification": "accuracy over the noise levels",
        "checkpoint_sweep": "accuracy and FID of every checkpoint of a run",
    },
    "use": {
        "extract_features": "features of a whole data set as a table, with an index if wanted",
        "search": "images of a table that are nearest to an image",
        "generate": "sample images, and measure their FID and KID",
        "demo": "a page to look at a checkpoint with, here or as a Space of the Hub",
    },
    "share": {
        "export": "a checkpoint for transformers, timm, ONNX or torch.export",
        "card": "write a checkpoint's model card from its results",
        "push_to_hub": "upload a checkpoint's folder to the Hub",
        "recipes": "list and print the recipes that come with ldae",
    },
}
VERBS = {verb: meaning for group in GROUPS.values() for verb, meaning in group.items()}
HELP = ("-h", "--help")
AT_ONCE = {"search", "demo", "export", "card", "push_to_hub", "recipes"}  # have no batches to stop between


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb.

    Args:
        arguments (`Sequence[str]`, *optional*): The verb and its arguments; by default the command line's.

    Returns:
        `int`: The exit status: 0; 2 if the arguments were wrong or the run failed for a reason the user can mend; 130
        or 143 after SIGINT or SIGTERM.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] in HELP:
        print(_overview())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(f"ldae {version('ldae')}")
        return 0
    verb = arguments[0].replace("-", "_")
    if verb not in VERBS:
        print(f"ldae: unknown command {arguments[0]!r}{did_you_mean(verb, VERBS)}", file=sys.stderr)
        return 2
    return run_verb(verb, arguments[1:])


def run_verb(verb: str, arguments: Sequence[str]) -> int:
    """Run one verb. Errors that the user can mend are one line on stderr, with LDAE_TRACEBACK=1 a traceback."""
    from ldae.verbs.options import GROUPS as OPTIONS

    kind = next(group[verb] for group in OPTIONS.values() if verb in group)
    if any(word in HELP for word in arguments):
        print(verb_help(verb, kind))
        return 0
    try:
        options: Any = parse(kind, arguments)
        with stopping.handling(f"ldae {verb}", at_once=verb in AT_ONCE):
            finish_import()
            return import_module(f"ldae.verbs.{verb}").run(options)
    except stopping.Stopped as stopped:
        return int(stopped.code or 0)
    except KeyboardInterrupt:
        print(f"ldae {verb}: interrupted.", file=sys.stderr)
        return 128 + signal.SIGINT
    except (ValueError, RunError) as error:
        if os.environ.get("LDAE_TRACEBACK") == "1":
            raise
        print(f"ldae {verb}: {error}", file=sys.stderr)
        return 2


def finish_import() -> None:
    """Run the package's `__init__`, which registers the models, if `ldae_cli` put that off."""
    package: Any = sys.modules["ldae"]
    if not hasattr(package, "__version__"):
        package.__spec__.loader.exec_module(package)
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # transformers' bars for loading and saving; a verb shows its own


def verb_help(verb: str, kind: Any) -> str:
    """Write the help of a verb from the class of its options."""
    groups: dict[str, Any] = option_groups(kind)
    words = [option.name.upper() for option in groups.get("arguments", [])]
    groups |= kind.sections() if hasattr(kind, "sections") else {}
    epilog = (
        "Values are YAML: 1e6, true, null, '[0.5, 1]'. Write --option VALUE or --option=VALUE, with - or _ in names."
    )
    summary = (kind.__doc__ or "").partition("Args:")[0]
    return help_text(" ".join(["ldae", verb, *words, "[--option VALUE ...]"]), summary, groups, epilog)


def _overview() -> str:
    lines = ["usage: ldae COMMAND ...   (ldae COMMAND --help explains its options)"]
    for group, verbs in GROUPS.items():
        lines += ["", f"{group}:"]
        lines += [f"  {verb:20s} {meaning}" for verb, meaning in verbs.items()]
    return "\n".join(lines)
