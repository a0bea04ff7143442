"""A task that does at once, and on demand, what real ones do rarely: fail, hang, crash.

Importing this module registers the task `fake`; workers import it because the task lives here.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from normbench import tasks
from normbench.cells import Cell
from normbench.data.errors import DataError
from normbench.tasks.outcome import Outcome

PROTOCOL = 1

tasks.TASKS["fake"] = __name__


def make_cell(seed: int = 0, act: str = "ok", **config: Any) -> Cell:
    return Cell(
        suite="tests", task="fake", method="none", params={"affine": False}, variant="none",
        model="none", model_args={}, dataset="none", dataset_args={}, batch_size=8, seed=seed,
        precision="fp32", config={"act": act, "timeout_seconds": None, **config},
    )  # fmt: skip


def run(cell: Cell, device: torch.device, progress: Callable[[float], None]) -> Outcome:
    progress(0.5)
    return ACTS[cell.config["act"]](cell, progress)


def _draws(cell: Cell, progress: Callable[[float], None]) -> Outcome:
    import random

    import numpy as np

    drawn = {
        "torch": torch.rand(1).item(),
        "numpy": float(np.random.rand()),  # noqa: NPY002
        "python": random.random(),
        "threads": float(torch.get_num_threads()),
    }
    return Outcome("ok", metrics=drawn)


def _sleep(cell: Cell, progress: Callable[[float], None]) -> Outcome:
    if folder := cell.config.get("sign_in"):
        (Path(folder) / str(cell.seed)).touch()
    time.sleep(cell.config["seconds"])
    return Outcome("ok", metrics={"pid": os.getpid()})


def _spoil(cell: Cell, progress: Callable[[float], None]) -> Outcome:
    return Outcome("ok", metrics={"pid": os.getpid()}, spoilt=True)


def _work_steadily(cell: Cell, progress: Callable[[float], None]) -> Outcome:
    end = time.monotonic() + cell.config["seconds"]
    while time.monotonic() < end:
        time.sleep(0.01)
        progress(0.7)
    return Outcome("ok")


def _print(cell: Cell, progress: Callable[[float], None]) -> Outcome:
    print("a stray print")
    sys.stdout.flush()
    os.write(1, b"a stray write\n")
    return Outcome("ok")


def _warn(cell: Cell, progress: Callable[[float], None]) -> Outcome:
    for _ in range(3):
        warnings.warn("this kernel is slow", UserWarning, stacklevel=1)
    return Outcome("ok", notes=("groups became 16",))


def _fail(error: BaseException) -> Callable[..., Outcome]:
    def act(cell: Cell, progress: Callable[[float], None]) -> Outcome:
        raise error

    return act


def _exhaust_memory(cell: Cell, progress: Callable[[float], None]) -> Outcome:
    torch.empty(2**60)
    raise AssertionError("a machine with an exbibyte of memory")


ACTS: dict[str, Callable[[Cell, Callable[[float], None]], Outcome]] = {
    "ok": lambda cell, progress: Outcome("ok", metrics={"value": float(cell.seed)}),
    "diverge": lambda cell, progress: Outcome("diverged", "loss is NaN at step 3"),
    "nan": lambda cell, progress: Outcome("ok", metrics={"loss": float("nan")}),
    "not plain": lambda cell, progress: Outcome("ok", curve=({"loss": torch.ones(1)},)),  # type: ignore[dict-item]
    "draws": _draws,
    "sleep": _sleep,
    "spoil": _spoil,
    "work steadily": _work_steadily,
    "print": _print,
    "warn": _warn,
    "exhaust memory": _exhaust_memory,
    "refuse": _fail(ValueError("instance_norm got one value; needs more values per channel")),
    "mistake": _fail(DataError("batch size 512 is larger than the 100 training images")),
    "fault": _fail(KeyError("missing")),
    "gpu oom": _fail(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")),
    "interrupt": _fail(KeyboardInterrupt()),
    "exit": lambda cell, progress: os._exit(7),
    "sys.exit": lambda cell, progress: sys.exit(4),
    "die": lambda cell, progress: os.kill(os.getpid(), signal.SIGKILL),  # type: ignore[func-returns-value,return-value]
    "segfault": lambda cell, progress: ctypes.string_at(0),  # type: ignore[return-value]
}
