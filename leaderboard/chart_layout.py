"""Where things stand on an accuracy chart: plain numbers, no drawing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from normbench.leaderboard.boards import Board, Variant

HEIGHT = 320
LABEL_GAP = 16
LABEL_OFFSET = 34
FAILURE_ROW = HEIGHT - 9.0
"""Height, in pixels from the top, at which failures are marked."""


@dataclass(frozen=True, slots=True)
class Axes:
    """Data to pixels: batch sizes from the left by their log2, errors in percent from the top.

    Errors are spaced by their logarithm, the small ones on top.
    """

    width: float
    first: float
    last: float
    best: float
    worst: float = 100.0

    def across(self, batch_size: float) -> float:
        """Pixels from the left."""
        return self.width * math.log(batch_size / self.first) / math.log(self.last / self.first)

    def down(self, error: float) -> float:
        """Pixels from the top."""
        span = math.log(self.worst / self.best)
        return HEIGHT * math.log(self.clamp(error) / self.best) / span

    def clamp(self, error: float) -> float:
        """The error, or the end of the axis that it lies beyond."""
        return min(max(error, self.best), self.worst)


def axes_of(boards: Iterable[Board], width: float) -> Axes:
    """Axes that hold every mean of all the boards, so that their charts can be compared."""
    errors: list[float] = []
    batches: list[int] = []
    for board in boards:
        batches += board.batch_sizes
        for variant in board.variants:
            means = [e.interval.mean for e in variant.entries.values() if e.interval is not None]
            errors += [100 - 100 * mean for mean in means]
    smallest = min((error for error in errors if error > 0), default=1.0)
    best = min(max(smallest * 0.6, 0.05), 50.0)
    return Axes(width, min(batches) / 2**0.3, max(batches) * 2**0.3, best)


def points(board: Board, axes: Axes) -> list[dict[str, Any]]:
    """One row per entry with a mean: error, and the ends of its interval, within the axes."""
    rows = []
    for variant in board.variants:
        for batch, entry in sorted(variant.entries.items()):
            if entry.interval is None:
                continue
            percent = entry.interval.scaled(100)
            ends = (percent.low, percent.high) if percent.bounded else (percent.mean,) * 2
            rows.append(
                {
                    "variant": variant.name,
                    "batch": batch,
                    "error": axes.clamp(100 - percent.mean),
                    "low": axes.clamp(100 - ends[0]),
                    "high": axes.clamp(100 - ends[1]),
                }
            )
    return rows


def failures(board: Board, axes: Axes) -> list[dict[str, Any]]:
    """Entries with a failed seed: a cross each, side by side where they share a batch size."""
    rows: list[dict[str, Any]] = []
    for batch in board.batch_sizes:
        failed = [v for v in board.variants if batch in v.entries and v.entries[batch].failures]
        left = axes.across(batch) - 13 * (len(failed) - 1) / 2
        rows += [
            {"variant": variant.name, "x": left + 13 * i, "y": FAILURE_ROW}
            for i, variant in enumerate(failed)
        ]
    return rows


def labels(board: Board, axes: Axes, others: Sequence[str] = ()) -> list[dict[str, Any]]:
    """One name per line, beside its last point, moved apart where lines end close together.

    Args:
        board: the lines.
        axes: of the chart.
        others: variants of neighbouring charts, to be named here though they have no line.
    """
    ends = [_end(variant, axes) for variant in board.variants]
    foot = {"from": float(HEIGHT), "to": float(HEIGHT), "start": axes.width, "drawn": False}
    ends += [{"variant": name, "name": name} | foot for name in others]
    ends.sort(key=lambda end: end["from"])
    _spread(ends)
    for end in ends:
        end["x"] = axes.width + LABEL_OFFSET
    return ends


def _end(variant: Variant, axes: Axes) -> dict[str, Any]:
    measured = {b: e.interval for b, e in variant.entries.items() if e.interval is not None}
    last = max(measured, default=max(variant.entries))
    interval = measured.get(last)
    height = FAILURE_ROW if interval is None else axes.down(100 - 100 * interval.mean)
    name = variant.name if interval is not None else f"{variant.name}: no result"
    return {
        "variant": variant.name, "name": name, "from": height, "to": height,
        "start": axes.across(last) + 8, "drawn": interval is not None,
    }  # fmt: skip


def _spread(ends: list[dict[str, Any]]) -> None:
    """Push labels apart downwards, then back up from the foot of the chart."""
    least = 0.0
    for end in ends:
        end["to"] = max(end["to"], least)
        least = end["to"] + LABEL_GAP
    most = float(HEIGHT)
    for end in reversed(ends):
        end["to"] = min(end["to"], most)
        most = end["to"] - LABEL_GAP
