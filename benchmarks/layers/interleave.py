"""Two layers timed in turns: what slows the machine down slows both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

from torch import Tensor, nn

SECONDS, ROUNDS = 0.6, 15


def step(layer: nn.Module, x: Tensor, gradient: Tensor) -> Callable[[], None]:
    """One forward and backward, gradients dropped as an optimizer would."""
    parameters = list(layer.parameters())

    def run() -> None:
        layer(x).backward(gradient)
        x.grad = None
        for parameter in parameters:
            parameter.grad = None

    return run


def interleaved(ours: Callable[[], None], theirs: Callable[[], None]) -> tuple[float, float]:
    """Medians in seconds. CPU time of this thread, which a busy neighbour does not lengthen."""
    times: tuple[list[int], list[int]] = ([], [])
    for run in (ours, theirs) * 3:
        run()
    end = time.monotonic() + SECONDS
    while time.monotonic() < end or len(times[0]) < ROUNDS:
        for run, taken in zip((ours, theirs), times, strict=True):
            start = time.thread_time_ns()
            run()
            taken.append(time.thread_time_ns() - start)
    return statistics.median(times[0]) / 1e9, statistics.median(times[1]) / 1e9
