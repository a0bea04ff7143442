"""Untimed runs until the times have settled: caches, allocators, compilers, clocks."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from normbench.timing.stopwatch import Timer

LEAST, MOST = 2, 30
SECONDS = 5.0
TOLERANCE = 0.1
"""Relative difference of two successive times that counts as settled: what is warming up gets
faster by more than that, and a noisy machine never gets below a tenth of it."""


@dataclass(frozen=True, slots=True)
class WarmUp:
    """What a warm-up took.

    Attributes:
        runs: untimed runs.
        settled: whether the times settled before runs or time were used up.
    """

    runs: int
    settled: bool


def warm_up(timer: Timer, clock: Callable[[], float] = time.monotonic) -> WarmUp:
    """Run until two successive times differ by at most `TOLERANCE`.

    Args:
        timer: runs the work once and tells its time.
        clock: of the time that all this may take.
    """
    end, before = clock() + SECONDS, timer()
    for runs in range(LEAST, MOST + 1):
        now = timer()
        if abs(now - before) <= TOLERANCE * before:
            return WarmUp(runs, True)
        if clock() >= end:
            return WarmUp(runs, False)
        before = now
    return WarmUp(MOST, False)
