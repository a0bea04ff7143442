"""One file per task; each has a `PROTOCOL` version and `run(cell, device, progress)`.

Raise a task's `PROTOCOL` whenever a change would alter what its numbers mean: cells get new ids,
and older records stay readable beside the new ones.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Protocol

import torch

from normbench.cells import Cell
from normbench.tasks.outcome import Outcome

TASKS = {
    "accuracy": "normbench.tasks.accuracy",
    "capability": "normbench.tasks.capability",
    "kernel": "normbench.tasks.kernel",
    "layer": "normbench.tasks.layer",
    "memory": "normbench.tasks.memory",
    "step": "normbench.tasks.step",
    "throughput": "normbench.tasks.throughput",
}
"""Task name to module. Modules are imported on first use."""

ALONE = frozenset({"kernel", "layer", "step", "throughput"})
"""Tasks that time: while a cell of theirs runs, no other must."""

AS_USERS_RUN = frozenset({"kernel", "layer", "memory", "step", "throughput"})
"""Tasks whose cells run the kernels that users get, deterministic or not."""


class Task(Protocol):
    """The interface of a task module."""

    PROTOCOL: int

    def run(self, cell: Cell, device: torch.device, progress: Callable[[float], None]) -> Outcome:
        """Measure one cell; `progress` takes the fraction done, 0 to 1."""
        ...


def get(name: str) -> Task:
    """The module of a task.

    Raises:
        ValueError: if there is no such task.
    """
    if name not in TASKS:
        raise ValueError(f"unknown task {name!r}; valid: {', '.join(sorted(TASKS))}")
    return importlib.import_module(TASKS[name])
