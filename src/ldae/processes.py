"""The processes of one launch: how this one joins the others, and how long they wait for each other."""

import os
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, parse_flag_from_env

from ldae.errors import one_line


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


def is_launched() -> bool:
    """Return whether a launcher started this process together with others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def choose_device(name: str | None, default: torch.device | None = None) -> torch.device:
    """Choose the device to compute on: the one that is named, and in a launch this process's own.

    Args:
        name (`str`, *optional*): Device such as cuda, cpu or mps.
        default (`torch.device`, *optional*): Device if none is named; by default a GPU if there is one, else the CPU.

    Raises:
        ValueError: If there is no such device here, or it is not of this process's own kind.
    """
    if name is not None:
        try:
            torch.zeros(1, device=name)
        except Exception as error:  # of a misspelt name, of a driver
            raise ValueError(
                f"device={name!r} does not work here ({one_line(error)[:200].rstrip('.')}); give cpu, or leave it out."
            ) from error
    if not is_launched():
        return torch.device(name or default or ("cuda" if torch.cuda.is_available() else "cpu"))
    own = join_processes().device
    if name is not None and torch.device(name).type != own.type:
        raise ValueError(f"device={name} does not go with several processes; leave it out, or give cpu.")
    return own


def make_accelerator(cpu: bool = False, **options: Any) -> Accelerator:
    """Join the other processes, and make an `Accelerator` from its own options.

    Accelerate takes FSDP on the CPU for DDP, without a warning. FSDP2 works there too, so it is asked for as on GPUs.

    Raises:
        ValueError: If Accelerate's configuration asks for FSDP in a way that is not supported.
    """
    processes = join_processes(cpu)
    if parse_flag_from_env("ACCELERATE_USE_FSDP"):
        _check_fsdp()
        if processes.distributed_type == DistributedType.MULTI_CPU:
            processes.distributed_type = DistributedType.MULTI_GPU
    return Accelerator(cpu=cpu, **options)


def _check_fsdp() -> None:
    """Check the variables that Accelerate's launcher sets from `fsdp_config`."""
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise ValueError(f"fsdp_version={version} in Accelerate's configuration is not supported; set it to 2.")
    for field, remedy in (
        ("offload_params", "set it to false"),
        ("cpu_ram_efficient_loading", "set it to false"),
        ("activation_checkpointing", "set it to false, and activation_checkpointing=true in the recipe"),
    ):
        if parse_flag_from_env(f"FSDP_{field.upper()}"):
            raise ValueError(f"fsdp_{field}=true in Accelerate's configuration is not supported; {remedy}.")
    for kind in ("tp", "cp", "sp"):  # whose processes would have to read the same images
        size = os.environ.get(f"PARALLELISM_CONFIG_{kind.upper()}_SIZE", "1")
        if size != "1":
            raise ValueError(
                f"parallelism_config_{kind}_size={size} in Accelerate's configuration is not supported; set it to 1."
            )
