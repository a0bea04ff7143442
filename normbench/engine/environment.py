"""Where a measurement is made: what goes into a record so that it can be judged and repeated.

Only what stays the same from run to run: no host name, user, path, process id or clock. A
record's id covers all of it, so the same machine and code must describe themselves alike.
"""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import torch

import normbench
from normbench.timing.machine import available_cores

PACKAGES = ("torch", "torchvision", "timm", "numpy", "triton", "pyarrow")
"""Packages whose version can change a number."""

DEFAULT_SUBMITTER = "local"


class DeviceError(ValueError):
    """A device that does not exist here."""


def resolve_device(name: str = "auto") -> torch.device:
    """The device a user asked for: `cpu`, `cuda`, or `auto` for CUDA where there is one.

    Raises:
        DeviceError: for another name, or `cuda` where there is none.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise DeviceError(f"unknown device {name!r}; expected auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise DeviceError("device cuda was asked for, but torch finds no CUDA device here")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device("cuda", 0) if name == "cuda" else torch.device("cpu")


def hardware_class(device: torch.device) -> str:
    """What must be equal for times to be comparable: `cpu: <model>` or `cuda: <model>`."""
    if device.type == "cuda":
        return f"cuda: {_squeeze(torch.cuda.get_device_name(device))}"
    return f"cpu: {cpu_model()}"


def submitter() -> str:
    """Who measures: `NORMBENCH_SUBMITTER`, else `local`.

    Nothing is taken from git or the system: a name gets into published records only if its owner
    puts it there.
    """
    return os.environ.get("NORMBENCH_SUBMITTER", "").strip() or DEFAULT_SUBMITTER


def describe(device: torch.device, threads: int | None = None) -> dict[str, Any]:
    """The environment of a record, plain JSON values.

    Args:
        device: where cells run.
        threads: CPU threads of the process that runs them; None takes torch's present number.
    """
    return {
        **_software(),
        "cpu": {"model": cpu_model(), "cores": available_cores()},
        "gpu": _gpu(device) if device.type == "cuda" else None,
        "threads": torch.get_num_threads() if threads is None else threads,
        # What execute.py sets for every cell.
        "numerics": {"tf32": False, "deterministic": True, "flush_denormal": True},
    }


@functools.cache
def cpu_model() -> str:
    """Name of the processor, `unknown x86_64` where the system does not say."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and (found := _name_in(cpuinfo.read_text(errors="replace"))):
        return found
    if platform.system() == "Darwin":
        name = _output("sysctl", "-n", "machdep.cpu.brand_string")
        if name:
            return _squeeze(name)
    return _squeeze(platform.processor()) or f"unknown {platform.machine()}"


def _name_in(cpuinfo: str) -> str:
    """The processor that Linux describes; on ARM, which gives no name, its numbers, else ""."""

    def values(key: str) -> list[str]:
        return re.findall(rf"^{key}[ \t]*:[ \t]*(\S.*)$", cpuinfo, re.M)

    if names := values("model name"):
        return _squeeze(names[0])
    makers, parts = values("CPU implementer"), values("CPU part")
    # Big and little cores have different part numbers.
    kinds = sorted(set(zip(makers, parts, strict=False)))
    cores = " + ".join(f"implementer {_squeeze(m)} part {_squeeze(p)}" for m, p in kinds)
    return f"ARM {cores}" if cores else ""


@functools.cache
def _software() -> dict[str, Any]:
    return {
        "normbench": normbench.__version__,
        "git": _git(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
    }


def _git() -> dict[str, Any] | None:
    """Commit of the checkout that normbench runs from; None where it is installed without one.

    An installed copy may well lie inside some other project's repository (its .venv), whose
    commit would say nothing: so git must know our own file.
    """
    # Our file may be a link into the checkout (scripts/source_tree.py).
    home = Path(normbench.__file__).resolve().parent
    git = ("git", "--no-optional-locks", "-C", str(home))
    if _output(*git, "ls-files", "--error-unmatch", "cells.py") is None:
        return None
    sha = _output(*git, "rev-parse", "HEAD")
    changes = _output(*git, "status", "--porcelain", "--untracked-files=no")
    return None if sha is None else {"sha": sha, "dirty": bool(changes)}


@functools.cache
def _gpu(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": _squeeze(properties.name),
        "memory_bytes": properties.total_memory,
        "capability": f"{properties.major}.{properties.minor}",
        "driver": _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "cuda": torch.version.cuda or torch.version.hip,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _output(*command: str) -> str | None:
    """What a command prints on its first line; None if it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode else (done.stdout.strip().splitlines() or [""])[0]


def _squeeze(text: str) -> str:
    return " ".join(text.split())
