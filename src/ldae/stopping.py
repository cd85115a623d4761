"""Stop by a signal: the first is acknowledged at once and obeyed at the next batch, a second ends the process.

A verb, or a training run by itself, calls [`handling`]; whatever loops over batches of images calls [`check`].
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # the last is what schedulers send before a time limit
# A launcher passes on a signal that all its processes have received already: within this time it is the same one.
SAME_SECONDS = 0.3
SAME_SECONDS_LAUNCHED = 5.0
END = 0  # no signal has this number

_before: dict[int, Any] = {}  # the handlers to restore, while signals are handled
_received: int | None = None
_deferred = 0
_mask: set[Any] = set()  # of signals that were blocked before a fork


class Stopped(SystemExit):
    """The end of a process that was asked to stop; the exit status is 128 and the signal's number."""


@contextmanager
def handling(name: str, *, at_once: bool = False) -> Iterator[None]:
    """Handle SIGINT, SIGTERM and SIGUSR1 within a context. Inside another such context, or another thread, do nothing.

    A thread acknowledges the first signal, even while the main thread computes, and ends the process at the second.

    Args:
        name (`str`): What runs, for the message: `"ldae knn"`.
        at_once (`bool`, defaults to `False`): Whether the first signal raises [`Stopped`] wherever the process is, for
            work without batches.
    """
    global _received
    if _before or threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def receive(number: int, frame: FrameType | None) -> None:
        global _received
        _received = _received or number
        if at_once:
            raise Stopped(128 + number)

    _received = None
    _before.update({number: signal.signal(number, receive) for number in SIGNALS})
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    watcher = threading.Thread(target=_watch, args=(reader, name, at_once), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        _restore_handlers()
        os.write(writer, bytes([END]))
        watcher.join()
        os.close(writer)
        os.close(reader)


def _restore_handlers() -> None:
    global _received
    for number, handler in _before.items():
        signal.signal(number, handler)
    _before.clear()
    _received = None


def _before_fork() -> None:
    global _mask
    _mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _after_fork() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _mask)


def _after_fork_in_child() -> None:
    """Give a forked child the handlers from before: its signals are none of its parent's."""
    if _before:
        signal.set_wakeup_fd(-1)
        _restore_handlers()
    _after_fork()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)


def received() -> int | None:
    """Return the signal that asked this process to stop."""
    return _received


def check() -> None:
    """Raise [`Stopped`] if a signal was received; called before each batch of images."""
    if _received is not None and not _deferred:
        raise Stopped(128 + _received)


def request(number: int) -> None:
    """Stop as by a signal, because another process of the job received it."""
    global _received
    _received = _received or number


@contextmanager
def deferred(when: bool = True) -> Iterator[None]:
    """Let [`check`] do nothing within a context, whose work must come to its end."""
    global _deferred
    _deferred += when
    try:
        yield
    finally:
        _deferred -= when


def _watch(reader: int, name: str, at_once: bool) -> None:
    """Acknowledge the first signal and end the process at the second; return at `END`."""
    first: float | None = None
    same = SAME_SECONDS_LAUNCHED if "LOCAL_RANK" in os.environ else SAME_SECONDS
    while (number := os.read(reader, 1)[0]) != END:
        if number not in SIGNALS:
            continue
        if first is None:
            first = time.monotonic()
            what = "stopping" if at_once else "stopping after this batch; a second signal stops at once"
            _say(f"{name}: received {signal.Signals(number).name}, {what}.")
        elif time.monotonic() - first > same:
            os._exit(128 + number)


def _say(line: str) -> None:
    """Write a line on stderr, below a progress bar if there is one."""
    os.write(2, f"{chr(10) if sys.stderr.isatty() else ''}{line}\n".encode())
