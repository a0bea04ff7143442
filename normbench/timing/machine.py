"""The state a measurement of costs needs of the machine: threads, memory, precision.

All of it is put back afterwards, as a cell may run in a process that is the user's own.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

SPARE = 0.95
"""Share of the memory that is available which a cell may take."""


CGROUP = Path("/sys/fs/cgroup")


class MachineError(ValueError):
    """What was asked for is not there on this machine."""


def available_cores() -> int:
    """Cores this process may use, which on a shared machine are fewer than there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def check_threads(threads: int) -> None:
    """Refuse more threads than cores: they would wait for each other.

    Raises:
        MachineError: with both numbers.
    """
    if threads > (cores := available_cores()):
        raise MachineError(f"{threads} CPU threads were asked for, this machine has {cores} cores")


def check_precision(precision: str, device: torch.device) -> None:
    """Refuse a precision that the device does not have.

    Raises:
        MachineError: naming those it has.
    """
    if precision == "tf32" and device.type == "cpu":
        raise MachineError("precision tf32 is one of CUDA devices; a CPU has fp32, bf16 and fp16")
    if device.type != "cuda":
        return
    if precision == "tf32" and torch.cuda.get_device_capability(device) < (8, 0):
        raise MachineError(f"{torch.cuda.get_device_name(device)} has no tf32; use fp32 or fp16")
    if precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise MachineError(f"{torch.cuda.get_device_name(device)} has no bf16; use fp32 or fp16")


@contextlib.contextmanager
def with_precision(precision: str) -> Iterator[None]:
    """Let matrix products and convolutions round their inputs to TF32 if the precision is that."""
    owners: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [owner.allow_tf32 for owner in owners]
    for owner in owners:
        owner.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        for owner, value in zip(owners, before, strict=True):
            owner.allow_tf32 = value


@contextlib.contextmanager
def pinned(threads: int, device: torch.device) -> Iterator[None]:
    """Torch on so many threads, and the whole process on as many cores, the first it may use.

    On CUDA, whose driver and whose autograd have threads of their own, and where the system cannot
    pin processes (macOS), the number of threads alone is set.
    """
    check_threads(threads)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    cores = _affinities() if device.type == "cpu" else {}
    _confine({task: sorted(allowed)[:threads] for task, allowed in cores.items()})
    try:
        yield
    finally:
        _confine({task: sorted(allowed) for task, allowed in cores.items()})
        own = cores.get(os.getpid())
        if own:  # threads that were started meanwhile
            _confine({task: sorted(own) for task in _affinities().keys() - cores.keys()})
        torch.set_num_threads(before)


def _affinities() -> dict[int, set[int]]:
    """Cores of every thread of this process; empty where the system has no such thing."""
    tasks = Path("/proc/self/task")
    if not (hasattr(os, "sched_getaffinity") and tasks.is_dir()):
        return {}
    found = {}
    for path in tasks.iterdir():
        with contextlib.suppress(ProcessLookupError):  # it ended just now
            found[int(path.name)] = os.sched_getaffinity(int(path.name))
    return found


def _confine(cores: dict[int, list[int]]) -> None:
    for task, allowed in cores.items():
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(task, allowed)


@contextlib.contextmanager
def within_memory(device: torch.device) -> Iterator[None]:
    """Let an allocation that the machine has no memory for fail, in place of the whole process.

    Linux promises memory it does not have, and kills who uses it: a batch that does not fit would
    be a dead process rather than a result. So the data segment is limited to what there is. A CUDA
    device refuses by itself, and where there is no such limit nothing is done.
    """
    free = 0 if device.type == "cuda" else _free_memory()
    held = _status("/proc/self/status", "VmData")
    if not free or not held:
        yield
        return
    import resource  # there is none on Windows, which has no /proc either

    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    most = held + int(SPARE * free)
    wanted = most if soft == resource.RLIM_INFINITY else min(soft, most)
    resource.setrlimit(resource.RLIMIT_DATA, (wanted, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _free_memory() -> int:
    """Bytes that this process may still take; 0 where the system does not say."""
    free = _status("/proc/meminfo", "MemAvailable")
    try:  # a container's own limit, of which the machine's figures know nothing
        limit, used = (int((CGROUP / f"memory.{name}").read_text()) for name in ("max", "current"))
    except (OSError, ValueError):  # there is none, or it is the word "max"
        return free
    return min(free, max(limit - used, 0))


def _status(path: str, key: str) -> int:
    """Bytes that a file of /proc tells under a key; 0 if it does not."""
    try:
        found = re.search(rf"^{key}:\s+(\d+) kB$", Path(path).read_text(), re.M)
    except OSError:
        return 0
    return 1024 * int(found[1]) if found else 0
