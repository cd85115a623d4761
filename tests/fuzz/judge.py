"""What every case of the fuzzer is held to: no crash, no hang, no number from a damaged one, refusals of one line."""

import io
import logging
import random
import re
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

import datasets
from huggingface_hub import constants

from ldae.cli import run_verb
from ldae.errors import RunError


SECONDS = 10  # of processor time; more is a hang
WAIT = 6  # times as many on the clock, on which other programs weigh too
LONGEST = 700  # characters of a refusal
# Words by which a refusal says what to do, or what is allowed.
REMEDY = re.compile(
    r"\b(give|must|did you mean|known are|choose|write|make|mend|leave|restore|move|name|set|add|repeat|install|wait|"
    r"quote|change|lists?|say|remove|needs?|are|has blocks|free|only applies)\b",
    re.IGNORECASE,
)
FIELD = re.compile(r"[\w.\]]+=|\w+\.\S+ |/\S+|\w+\.(yaml|json)|\w+ is missing|'\w+'|option --|--\w+|^\S+: ")


class Hang(BaseException):
    """Raised in a case that takes too long."""


@dataclass(frozen=True)
class Case:
    """One input.

    Args:
        what (`str`): The input in words.
        run (`Callable[[], str | None]`): Tries it; returns the text of a refusal, or `None` if it was accepted.
        names (`tuple[str, ...]`): File or field that a refusal names, one of these; empty if any field will do.
        seconds (`int`): More is a hang.
    """

    what: str
    run: Callable[[], str | None]
    names: tuple[str, ...]
    seconds: int = SECONDS


@dataclass(frozen=True)
class Outcome:
    """What came of a case: `refused`, `accepted` or `crashed`, with the refusal, or what broke which rule."""

    kind: str
    text: str
    seconds: float


def chance_of(family: str, seed: int, number: int) -> random.Random:
    """Every case draws from its own numbers, so that it can be repeated alone."""
    return random.Random(f"{family}:{seed}:{number}")


def by_call(function: Callable[..., Any], *arguments: Any, **options: Any) -> str | None:
    """Call the library; what the command line would print in one line is a refusal."""
    try:
        function(*arguments, **options)
    except (ValueError, RunError) as error:
        return str(error)
    return None


def by_verb(verb: str, *arguments: object) -> str | None:
    """Run a command in this process, as a user would."""
    said = io.StringIO()
    with redirect_stderr(said), redirect_stdout(io.StringIO()):
        status = run_verb(verb, [str(argument) for argument in arguments])
    if status == 0:
        return None
    if status != 2:
        raise AssertionError(f"exit status {status}")
    lines = [line for line in said.getvalue().splitlines() if line.strip() and not line.startswith("Warning: ")]
    if len(lines) != 1 or not lines[0].startswith(f"ldae {verb}: "):
        raise AssertionError(f"{len(lines)} lines on stderr: {said.getvalue()}")
    return lines[0].removeprefix(f"ldae {verb}: ")


def judge(case: Case) -> Outcome:
    """Try a case and hold it to the rules."""
    started = time.monotonic()
    try:
        with _silence(), _time_limit(case.seconds):
            refusal = case.run()
    except Hang:
        return Outcome("crashed", f"hangs: more than {case.seconds} s", time.monotonic() - started)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        place = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{type(error).__name__}: {error} ({place.filename}:{place.lineno})"
        return Outcome("crashed", text, time.monotonic() - started)
    seconds = time.monotonic() - started
    if refusal is None:
        return Outcome("accepted", "", seconds)
    wrong = broken_rule(refusal, case.names)
    return Outcome("crashed" if wrong else "refused", f"{wrong}: {refusal}" if wrong else refusal, seconds)


def broken_rule(refusal: str, names: tuple[str, ...]) -> str | None:
    """Name the rule that a refusal breaks."""
    if "\n" in refusal.strip():
        return "several lines"
    if len(refusal) > LONGEST:
        return f"{len(refusal)} characters"
    if "Traceback" in refusal:
        return "a traceback"
    lower = refusal.lower()  # a name in capitals is answered with the right one
    if not (any(name.lower() in lower for name in names) if names else FIELD.search(refusal)):
        return f"names none of {', '.join(names) or 'file and field'}"
    return None if REMEDY.search(refusal) else "no remedy"


@contextmanager
def _time_limit(seconds: int) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Hang

    before = [signal.signal(number, stop) for number in (signal.SIGPROF, signal.SIGALRM)]
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, WAIT * seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in zip((signal.SIGPROF, signal.SIGALRM), before, strict=True):
            signal.signal(number, handler)


@contextmanager
def _silence() -> Iterator[None]:
    """Keep warnings and logs off the report; a command's own stderr is read by `by_verb`."""
    logging.disable(logging.CRITICAL)
    offline = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        constants.HF_HUB_OFFLINE = offline
        logging.disable(logging.NOTSET)
        sys.stderr.flush()
