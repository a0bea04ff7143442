"""Task `capability`: put every probe of normbench.capabilities to a method's layer.

Protocol 1. The model is the bare layer, the data are random numbers from the cell's seed. The
record's `slots` has the entries, `{"probes": {name: {"value": ..., "reason": ...}}}`; its metrics
have those with a value, yes as 1 and no as 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from normbench import registry
from normbench.capabilities import SETTINGS, Subject, examine, numbers
from normbench.cells import Cell
from normbench.tasks.outcome import Outcome

PROTOCOL = 1

BATCH_SIZE = 8
TIMEOUT_SECONDS = 900


def run(cell: Cell, device: torch.device, progress: Callable[[float], None]) -> Outcome:
    """Examine one method; `error` only if no probe at all could be answered."""
    settings = {**SETTINGS, **{k: v for k, v in cell.config.items() if k in SETTINGS}}
    subject = Subject(cell.method, cell.params, device, cell.batch_size, cell.seed, settings)
    entries = examine(subject, progress)
    metrics = numbers(entries)
    slots = {"probes": {name: answer.to_json() for name, answer in entries.items()}}
    if not metrics:
        reason = f"no probe could be answered: {next(iter(entries.values())).reason}"
        return Outcome("error", reason, slots=slots)
    return Outcome("ok", metrics=metrics, slots=slots)


def cell(method: str, params: Mapping[str, Any] | None = None, *, fast: bool = False) -> Cell:
    """The cell that examines a method.

    Args:
        method: catalogue name.
        params: parameters that differ from the defaults.
        fast: leave out the probes that take seconds.

    Raises:
        RegistryError: for an unknown method or parameter.
    """
    return Cell(
        suite="capabilities", task="capability", method=method,
        params=registry.resolve_params(method, params), variant=registry.variant(method, params),
        model="layer", model_args={}, dataset="none", dataset_args={}, batch_size=BATCH_SIZE,
        seed=0, precision="fp32",
        config={**SETTINGS, "fast": fast, "timeout_seconds": TIMEOUT_SECONDS},
    )  # fmt: skip
