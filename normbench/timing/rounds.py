"""Timers in turns, and what their times amount to."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from normbench.timing.stopwatch import Timer

LEAST, MOST, SECONDS = 15, 40, 0.3
"""Rounds; between the two the time decides."""


def in_turns(
    timers: Mapping[str, Timer],
    *,
    seconds: float = SECONDS,
    least: int = LEAST,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, list[float]]:
    """Rounds in which every timer takes one time, each round beginning with another.

    What slows the machine down slows all of them.
    """
    names = list(timers)
    taken: dict[str, list[float]] = {name: [] for name in names}
    end = clock() + seconds
    for turn in range(max(MOST, least)):
        if turn >= least and clock() >= end:
            break
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            taken[name].append(timers[name]())
    return taken


@dataclass(frozen=True, slots=True)
class Times:
    """Median, 20th and 80th percentile, in seconds."""

    median: float
    p20: float
    p80: float

    @classmethod
    def of(cls, samples: Iterable[float]) -> Times:
        """Of raw times."""
        ordered = sorted(samples)
        return cls(*(quantile(ordered, q) for q in (0.5, 0.2, 0.8)))

    def metrics(self, name: str) -> dict[str, float]:
        """As a record has them."""
        return {
            f"{name}_seconds": self.median,
            f"{name}_p20_seconds": self.p20,
            f"{name}_p80_seconds": self.p80,
        }


def quantile(ordered: Sequence[float], q: float) -> float:
    """Linear between neighbours."""
    position = q * (len(ordered) - 1)
    low = int(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)
