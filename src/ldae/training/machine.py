"""The machine that a run is planned for: cores, memory, accelerator and compiler."""

import ctypes
import gc
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psutil
import torch

from ldae.processes import join_processes
from ldae.training.progress import describe_bytes, describe_count


CGROUP = Path("/sys/fs/cgroup")
MMAP_THRESHOLD = -3  # glibc's M_MMAP_THRESHOLD


@dataclass(frozen=True)
class Machine:
    """Resources that a run can use."""

    cores: int  # of the CPU, that this process may use
    memory: int  # in bytes
    free: int  # of the memory
    device: str  # type of the device that training chooses: cuda, mps, cpu, ...
    accelerators: list[str]  # their names, empty on a CPU
    bf16: bool  # whether the accelerator computes in bfloat16

    @property
    def on_cpu(self) -> bool:
        """True if training runs on the CPU."""
        return self.device == "cpu"

    def __str__(self) -> str:
        accelerators = ", ".join(self.accelerators) or "no GPU"
        return (
            f"{describe_count(self.cores, 'core')}, {describe_bytes(self.memory)} of memory "
            f"({describe_bytes(self.free)} free), {accelerators}"
        )


def look_at_machine() -> Machine:
    """Describe this machine as training would use it."""
    device = join_processes().device.type
    names = [] if device == "cpu" else [device]
    if device == "cuda":
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return Machine(
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory=psutil.virtual_memory().total,
        free=free_memory(torch.device("cpu")),
        device=device,
        accelerators=names,
        bf16=device == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False),
    )


def free_memory(device: torch.device) -> int:
    """Return the free memory of a device in bytes; of the CPU also within the limit of a container."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = [psutil.virtual_memory().available]
    for limit, usage in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with suppress(OSError, ValueError):  # there is no such file, or it says "max"
            free.append(int((CGROUP / limit).read_text()) - int((CGROUP / usage).read_text()))
    return max(0, min(free))


def release_memory() -> None:
    """Release what a run leaves in the process: accelerator memory and compiled code.

    PyTorch compiles the same function for a few models only, and refuses the next if the whole graph is required.
    """
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def return_freed_memory() -> None:
    """Let glibc return a tensor of 1 MiB or more to the system as soon as it is freed; elsewhere do nothing.

    It keeps what is freed for the next tensors. Where each block is computed again, tensors of many sizes come and go,
    they fit badly into the gaps, and the process takes twice the memory that its tensors need.
    """
    with suppress(OSError, AttributeError):  # no glibc
        ctypes.CDLL(None).mallopt(MMAP_THRESHOLD, 2**20)


def can_compile(device: str) -> bool:
    """Return whether torch.compile finds what it needs for a type of device: a C++ compiler, and on a GPU Triton."""
    return cpp_compiler() is not None and (device != "cuda" or find_spec("triton") is not None)


def cpp_compiler() -> str | None:
    """Return the C++ compiler that torch.compile would call; `None` if there is none."""
    names = [os.environ.get("CXX"), "g++", "clang++", "c++"]
    return next((name for name in names if name and shutil.which(name)), None)
