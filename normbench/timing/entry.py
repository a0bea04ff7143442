"""A contestant's results, as trials and metrics of a record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from normbench.timing.rounds import Times


@dataclass(slots=True)
class Entry:
    """What was found of one contestant.

    Attributes:
        metrics: name to number, units in the names.
        samples: raw times in seconds, by what was timed.
        problems: what could not be measured, and why.
    """

    metrics: dict[str, float] = field(default_factory=dict)
    samples: dict[str, list[float]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def take(self, what: str, seconds: Sequence[float]) -> None:
        """Keep raw times, to the nanosecond, and what they amount to."""
        self.samples[what] = [round(s, 9) for s in seconds]
        self.metrics |= Times.of(seconds).metrics(what)

    def failed(self, what: str, error: Exception) -> None:
        """Note what could not be measured."""
        words = " ".join(str(error).split())[:500]
        self.problems.append(f"{what}: {type(error).__name__}: {words}")

    def trial(self, name: str) -> dict[str, Any]:
        """As the record has it."""
        return {
            "config": {"contestant": name},
            "status": "error" if self.problems else "ok",
            "reason": "; ".join(self.problems),
            "metrics": self.metrics,
            "samples": self.samples,
        }


def record_metrics(entries: Mapping[str, Entry], first: str) -> dict[str, float]:
    """All of the first contestant's metrics; of its peers medians, counts, and their ratios to it.

    A ratio above 1 is in favour of the first. Percentiles of peers are in their trials.
    """
    ours = entries[first].metrics
    metrics = dict(ours)
    for name, entry in entries.items():
        if name == first:
            continue
        for key, value in entry.metrics.items():
            if "_p20_" in key or "_p80_" in key:
                continue
            metrics[f"{name}_{key}"] = value
            if ours.get(key):
                metrics[f"{name}_{_without_unit(key)}_ratio"] = value / ours[key]
    return metrics


def _without_unit(key: str) -> str:
    return key.removesuffix("_seconds").removesuffix("_bytes")
