"""How many times as long one piece of work takes as another timed in the same rounds.

Slow drifts of the machine are in both times of a round and cancel in their ratio, so what counts
is the median of the rounds' ratios. Its interval is the one between two order statistics, which
holds whatever the distribution (David & Nagaraja, Order Statistics, 2003, 7.1): times are skewed,
and no mean of them is normal after ten rounds.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from normbench.timing.rounds import Times, quantile

LAUNCHED, GRAPH = "launched", "graph"
PREFIX = {LAUNCHED: "", GRAPH: "graph_"}
"""How work may be started, and what stands before the names of its metrics."""

LEAST_ROUNDS = 6
"""With fewer, no two order statistics enclose the median with a chance of 95%."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """Median of the rounds' ratios; the bounds are NaN below `LEAST_ROUNDS` rounds."""

    median: float
    low: float
    high: float
    rounds: int

    def metrics(self, prefix: str = "") -> dict[str, float]:
        """As a record has it: `ratio`, `ratio_low`, `ratio_high`; no bounds where there are none.

        Args:
            prefix: stands before the names, `graph_` for instance.
        """
        found = {f"{prefix}ratio": self.median}
        if not math.isnan(self.low):
            found |= {f"{prefix}ratio_low": self.low, f"{prefix}ratio_high": self.high}
        return found


def paired_ratio(ours: Sequence[float], reference: Sequence[float], level: float = 0.95) -> Ratio:
    """The ratio of two contestants' times, round by round.

    The interval reaches from the k-th smallest ratio to the k-th largest, with the largest k for
    which Binomial(n, ½) falls below k with probability at most (1 − level)/2. It supposes that
    rounds are independent, and says nothing of another process on another day.

    Args:
        ours: seconds, one per round.
        reference: seconds of the same rounds.
        level: least coverage of the interval.

    Raises:
        ValueError: if there are no rounds, not as many of each, or a time is not above 0.
    """
    if not ours or len(ours) != len(reference):
        raise ValueError(f"{len(ours)} times against {len(reference)} are no rounds")
    if min(*ours, *reference) <= 0:
        raise ValueError("a time that is not above 0 is none")
    ratios = sorted(a / b for a, b in zip(ours, reference, strict=True))
    rank = _rank(len(ratios), level)
    bounds = (ratios[rank - 1], ratios[-rank]) if rank else (math.nan, math.nan)
    return Ratio(quantile(ratios, 0.5), *bounds, len(ratios))


def _rank(n: int, level: float) -> int:
    """The largest such k; 0 if there is none."""
    rank, below = 0, 0.0
    while (below := below + math.comb(n, rank) / 2**n) <= (1 - level) / 2:
        rank += 1
    return rank


def contest_metrics(
    ours: Sequence[float], reference: Sequence[float] | None, prefix: str = ""
) -> dict[str, float]:
    """What two contestants' times amount to, as a record has it.

    `seconds`, `p20_seconds`, `p80_seconds` and `rounds`, the same with `reference_`, and the ratio
    with its interval; without a reference the first four alone.

    Args:
        ours: seconds, one per round.
        reference: seconds of the same rounds; None if they could not be taken.
        prefix: stands before all names, `graph_` for instance.

    Raises:
        ValueError: as `paired_ratio`.
    """
    metrics = {**_times(ours, prefix), f"{prefix}rounds": float(len(ours))}
    if reference is not None:
        metrics |= _times(reference, f"{prefix}reference_")
        metrics |= paired_ratio(ours, reference).metrics(prefix)
    return metrics


def _times(seconds: Sequence[float], prefix: str) -> dict[str, float]:
    found = Times.of(seconds)
    return {
        f"{prefix}seconds": found.median,
        f"{prefix}p20_seconds": found.p20,
        f"{prefix}p80_seconds": found.p80,
    }
