"""The processes of one launch: how this one joins the others, and how long they wait for each other."""

from datetime import timedelta
from typing import Any

from accelerate import Accelerator, PartialState
from accelerate.utils import parse_flag_from_env


LONGEST_WAIT = timedelta(days=7)


def join_processes(cpu: bool = False) -> PartialState:
    """Join the other processes of the launch; without a launcher this is the only process.

    Processes wait up to seven days for each other, because the main process works alone at times: it prepares data,
    probes, draws pictures or uploads. The limits of accelerate, 10 minutes with NCCL and 30 otherwise, would end such
    a run. A process that ends still ends the others at once.

    Args:
        cpu (`bool`, defaults to `False`): Compute on the CPU, also where there is a GPU.

    Returns:
        `PartialState` of accelerate, which is one for the whole process.
    """
    if PartialState._shared_state:
        return PartialState()
    return PartialState(cpu=cpu or parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=LONGEST_WAIT)


def make_accelerator(cpu: bool = False, **options: Any) -> Accelerator:
    """Join the other processes, and make an `Accelerator` from its own options."""
    join_processes(cpu)
    return Accelerator(cpu=cpu, **options)
