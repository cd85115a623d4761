"""The `ldae` command: it reads a verb's options, then imports what the verb needs and runs it."""

import os
import signal
import sys
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from ldae import stopping
from ldae.errors import explain
from ldae.options import did_you_mean, parse
from ldae.options.help import help_text, option_groups
from ldae.verbs import VERBS


HELP = ("-h", "--help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb.

    Args:
        arguments (`Sequence[str]`, *optional*): The verb and its arguments; by default the command line's.

    Returns:
        `int`: The exit status: 0; 2 if the arguments were wrong or the run failed for a reason the user can mend;
        130, 138 or 143 after SIGINT, SIGUSR1 or SIGTERM.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments[:1] == ["help"]:  # help VERB is VERB --help
        arguments = [*arguments[1:2], "--help"]
    if not arguments or arguments[0] in HELP:
        print(_overview())
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version"):
        from importlib.metadata import version

        print(f"ldae {version('ldae')}")
        return 0
    verb = arguments[0].replace("-", "_")
    if verb not in VERBS:
        print(f"ldae: unknown command {arguments[0]!r}{did_you_mean(verb, VERBS)}", file=sys.stderr)
        return 2
    return run_verb(verb, arguments[1:])


def run_verb(name: str, arguments: Sequence[str]) -> int:
    """Run one verb. Errors that the user can mend are one line on stderr, with LDAE_TRACEBACK=1 a traceback."""
    verb = VERBS[name]
    if any(word in HELP for word in arguments):
        print(verb_help(name, verb.options))
        return 0
    try:
        options = parse(verb.options, arguments)
        with stopping.handling(f"ldae {name}", at_once=verb.at_once):
            if not verb.light:
                finish_import()
            if not verb.shared:
                return verb.run(options)
            from ldae.shared_work import sharing_work

            with sharing_work(options.device == "cpu"):
                return verb.run(options)
    except stopping.Stopped as stopped:
        return int(stopped.code or 0)
    except KeyboardInterrupt:
        print(f"ldae {name}: interrupted.", file=sys.stderr)
        return 128 + signal.SIGINT
    except Exception as error:
        explained = explain(error)
        if explained is None or os.environ.get("LDAE_TRACEBACK") == "1":
            raise
        print(f"ldae {name}: {explained}", file=sys.stderr)
        return 2


def finish_import() -> None:
    """Run the package's `__init__`, which registers the models, if `ldae_cli` put that off."""
    if not sys.stderr.isatty():  # a log takes no bars, and an error is one line
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    package: Any = sys.modules["ldae"]
    if not hasattr(package, "__version__"):
        package.__spec__.loader.exec_module(package)
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # transformers' bars for loading and saving; a verb shows its own


def verb_help(name: str, kind: Any) -> str:
    """Write the help of a verb from the class of its options."""
    groups = option_groups(kind)
    words = [option.name.upper() for option in groups.get("arguments", [])]
    groups |= getattr(kind, "sections", dict)()
    summary = (kind.__doc__ or "").partition("Args:")[0]
    epilog = (
        "Values are YAML: 1e6, true, null, '[0.5, 1]'. Write --option VALUE or --option=VALUE, with - or _ in names."
    )
    return help_text(" ".join(["ldae", name, *words, "[--option VALUE ...]"]), summary, groups, epilog)


def _overview() -> str:
    lines = ["usage: ldae COMMAND ...   (ldae COMMAND --help explains its options)"]
    for group, verbs in groupby(VERBS.values(), key=lambda verb: verb.group):
        lines += ["", f"{group}:", *(f"  {verb.name:20s} {verb.summary}" for verb in verbs)]
    return "\n".join(lines)
