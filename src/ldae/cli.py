"""The `ldae` command: it reads a verb's options, then imports what the verb needs and runs it."""

import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from ldae import stopping
from ldae.errors import explain
from ldae.options import did_you_mean, parse
from ldae.options.help import help_text, option_groups
from ldae.verbs import GROUPS, VERBS


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


def run_verb(verb: str, arguments: Sequence[str]) -> int:
    """Run one verb. Errors that the user can mend are one line on stderr, with LDAE_TRACEBACK=1 a traceback."""
    kind = VERBS[verb].options
    if any(word in HELP for word in arguments):
        print(verb_help(verb, kind))
        return 0
    try:
        options: Any = parse(kind, arguments)
        with stopping.handling(f"ldae {verb}", at_once=VERBS[verb].at_once):
            if not VERBS[verb].light:
                finish_import()
            run = import_module(f"ldae.verbs.{verb}").run
            if verb not in GROUPS["measure"]:
                return run(options)
            from ldae.shared_work import sharing_work

            with sharing_work(options.device == "cpu"):
                return run(options)
    except stopping.Stopped as stopped:
        return int(stopped.code or 0)
    except KeyboardInterrupt:
        print(f"ldae {verb}: interrupted.", file=sys.stderr)
        return 128 + signal.SIGINT
    except Exception as error:
        explained = explain(error)
        if explained is None or os.environ.get("LDAE_TRACEBACK") == "1":
            raise
        print(f"ldae {verb}: {explained}", file=sys.stderr)
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
        lines += [f"  {name:20s} {verb.summary}" for name, verb in verbs.items()]
    return "\n".join(lines)
