"""Measuring in all processes of a launch: each computes its share of the batches, and the main one does the rest.

Within [`sharing_work`] all processes run the same code. [`share`] says which batches are this process's,
[`gather_objects`], [`gather_to_main`] and [`add_up`] bring results together, and [`on_main`] runs what only the main
process does, while the others wait. Outside, and in a single process, all of them do what their names say for one
process.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from ldae import stopping
from ldae.errors import explain
from ldae.processes import LONGEST_WAIT, is_launched, join_processes


T = TypeVar("T")
A = TypeVar("A")

_rank, _world_size = 0, 1  # within `sharing_work`
_own_error: Exception | None = None  # which no other process has
_group: Any = None  # of CPU tensors, so that features need no room on a GPU


@contextmanager
def sharing_work(cpu: bool = False) -> Iterator[None]:
    """Share the work within a context among the processes of the launch. All but the main one print nothing.

    Args:
        cpu (`bool`, defaults to `False`): Compute on the CPU, also where there is a GPU.
    """
    global _rank, _world_size, _group
    if not is_launched() or _world_size > 1:
        yield
        return
    state = join_processes(cpu)
    _rank, _world_size = state.process_index, state.num_processes
    _group = None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo", timeout=LONGEST_WAIT)
    try:
        with (
            open(os.devnull, "w") as nowhere,
            contextlib.redirect_stdout(nowhere) if _rank else contextlib.nullcontext(),
        ):
            yield
        with contextlib.suppress(RuntimeError):  # of a main process that failed in its report, and tells of it
            gather_objects(None)
    except Exception as error:
        if _rank and error is not _own_error and explain(error) is not None:
            raise SystemExit(2) from error  # all processes have it, and the main one tells of it
        raise
    finally:
        _rank, _world_size, _group = 0, 1, None


def share() -> tuple[int, int]:
    """Return this process's number and the number of processes that share the work: `(0, 1)` outside of a context."""
    return _rank, _world_size


def is_main() -> bool:
    """Return whether this process goes on with what all have computed."""
    return _rank == 0


def gather_objects(value: T) -> list[T]:
    """Gather a small value of each process, in all of them."""
    if _world_size == 1:
        return [value]
    values: list[Any] = [None] * _world_size
    with _noticing_stops():
        dist.all_gather_object(values, value, group=_group)
    return values


def gather_to_main(value: T) -> list[T]:
    """Gather a value of each process in the main one; the others get an empty list."""
    if _world_size == 1:
        return [value]
    values: list[Any] | None = [None] * _world_size if _rank == 0 else None
    with _noticing_stops():
        dist.gather_object(value, values, group=_group)
    return values or []


def add_up(tensor: "torch.Tensor") -> "torch.Tensor":
    """Sum a tensor on the CPU over all processes, in place and in all of them."""
    if _world_size > 1:
        with _noticing_stops():
            dist.all_reduce(tensor, group=_group)
    return tensor


@contextmanager
def failing_together() -> Iterator[None]:
    """End all processes if one fails within a context, in which they do not wait for each other.

    Raises:
        Exception: The error, in the first process that has one.
        SystemExit: In the others.
    """
    global _own_error
    if _world_size == 1:
        yield
        return
    error = None
    try:
        yield
    except Exception as raised:
        error = raised
    failed = gather_objects(error is not None)
    if error is not None and failed.index(True) == _rank:
        _own_error = error
        raise error
    if any(failed):
        raise SystemExit(2)


def on_main(function: Callable[[], T]) -> T:
    """Call a function in the main process while the others wait.

    Returns:
        What it returns; in the other processes `None`, which their code must not look at.
    """
    found = None
    with failing_together():
        if is_main():
            found = function()
    return cast(T, found)


def main_only(found: T) -> T:
    """Return what all processes have found in the main one, and `None` in the others."""
    return cast(T, found if is_main() else None)


def main_first(function: Callable[[], T]) -> T:
    """Call a function in all processes, and in the main one before the others, so that it prepares data only once."""
    found = on_main(function)
    with failing_together():
        return found if is_main() else function()


def led_by_main(work: Callable[[Callable[[A], T]], Any], step: Callable[[A], T]) -> Any:
    """Let the main process work, and call `step` in all processes whenever its work does.

    Args:
        work (`Callable`): Takes a function to call in place of `step`, as often and with what arguments it likes.
        step (`Callable`): What all processes do, such as computing the features of an epoch.

    Returns:
        What `work` returns; in the other processes `None`.
    """
    if _world_size == 1:
        return work(step)
    if not is_main():
        while True:
            message: Any = gather_objects(None)[0]
            kind, argument = message
            if kind == "failed":
                raise SystemExit(2)
            if kind == "end":
                return None
            step(argument)
    within_step = False  # there, an error has been told to the others

    def call(argument: A) -> T:
        nonlocal within_step
        gather_objects(("step", argument))
        within_step = True
        found = step(argument)
        within_step = False
        return found

    try:
        result = work(call)
    except Exception:
        if not within_step:
            gather_objects(("failed", None))
        raise
    gather_objects(("end", None))
    return result


@contextmanager
def _noticing_stops() -> Iterator[None]:
    """End as asked by a signal where another process, which received it too, has ended first."""
    try:
        yield
    except RuntimeError:
        stopping.check()
        raise
