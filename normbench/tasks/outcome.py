"""What a task returns for one cell: everything of a record that the task alone knows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from normbench.cells import Status


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of a task. The fields mean what they mean in `normbench.cells.Record`.

    Attributes:
        spoilt: whether the task knows that no other cell should run in this process.
    """

    status: Status
    reason: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    curve: tuple[Mapping[str, float], ...] = ()
    trials: tuple[Mapping[str, Any], ...] = ()
    samples: tuple[float, ...] = ()
    slots: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    data_fingerprint: str = ""
    spoilt: bool = False


_MEMORY_WORDS = (
    "out of memory", "can't allocate memory", "not enough memory", "alloc_failed",
)  # fmt: skip


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, in whichever of torch's ways."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    words = str(error).lower()
    return isinstance(error, RuntimeError) and any(phrase in words for phrase in _MEMORY_WORDS)
