"""A stopwatch that runs everything once and tells made-up times: CUDA's modes on a CPU."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch

from normbench.timing.stopwatch import COPY_BYTES, Run, Timer

COPY_BANDWIDTH = 4e12
L2_BYTES = 60_000_000


class MadeUpWatch:
    """Every timer takes 1 µs more than the one before it; `log` has what was asked for."""

    graphs = True
    spoilt = False

    def __init__(self, device: torch.device, l2_bytes: int = L2_BYTES) -> None:
        self.device = device
        self.l2_bytes = l2_bytes
        self.log: list[tuple[Any, ...]] = []

    def here(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def launched(self, run: Run, *, clear: bool) -> Timer:
        run()
        return self._timer("cleared" if clear else "launched", 1)

    def replayed(self, runs: Sequence[Run], *, keep: bool = False) -> Timer:
        runs[0]()
        return self._timer("graph" if keep else "again", len(runs))

    def copy(self) -> Timer:
        return lambda: 2 * COPY_BYTES / COPY_BANDWIDTH

    def peak_bytes(self, run: Run) -> int:
        run()
        return 1000

    def kernels(self, run: Run) -> int:
        run()
        return 3

    def _timer(self, kind: str, runs: int) -> Timer:
        self.log.append((kind, runs))
        seconds = 1e-6 * len(self.log)
        return lambda: seconds


class NoGraphs(MadeUpWatch):
    """Every capture breaks off, as CUDA's does where a method decides on the host."""

    def replayed(self, runs: Sequence[Run], *, keep: bool = False) -> Timer:
        self.spoilt = True
        raise RuntimeError("a value was read on the host")
