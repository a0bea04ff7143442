"""Where things stand on an accuracy chart: plain numbers, no drawing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from normbench.leaderboard.boards import Board

WIDTH, HEIGHT = 430, 320
LABEL_GAP = 15
FAILURE_ROW = HEIGHT - 9.0
"""Height, in pixels from the top, at which failures are marked."""


@dataclass(frozen=True, slots=True)
class ErrorScale:
    """Errors in percent to pixels from the top: logarithmic, the small ones on top."""

    best: float
    worst: float = 100.0

    def pixel(self, error: float) -> float:
        """Pixels from the top."""
        span = math.log(self.worst / self.best)
        return HEIGHT * math.log(self.clamp(error) / self.best) / span

    def clamp(self, error: float) -> float:
        """The error, or the end of the scale that it lies beyond."""
        return min(max(error, self.best), self.worst)


def scale_of(board: Board) -> ErrorScale:
    """The scale that holds every mean of the board, with some room above the best."""
    errors = [
        100 - 100 * e.interval.mean
        for v in board.variants
        for e in v.entries.values()
        if e.interval is not None
    ]
    smallest = min((e for e in errors if e > 0), default=1.0)
    return ErrorScale(best=min(max(smallest * 0.6, 0.05), 50.0))


def points(board: Board, scale: ErrorScale) -> list[dict[str, Any]]:
    """One row per entry with a mean: error, and the ends of its interval, within the scale."""
    rows = []
    for variant in board.variants:
        for batch, entry in sorted(variant.entries.items()):
            if entry.interval is None:
                continue
            percent = entry.interval.scaled(100)
            low, high = (
                (percent.low, percent.high) if percent.bounded else (percent.mean, percent.mean)
            )
            rows.append(
                {
                    "variant": variant.name,
                    "batch": batch,
                    "error": scale.clamp(100 - percent.mean),
                    "low": scale.clamp(100 - low),
                    "high": scale.clamp(100 - high),
                }
            )
    return rows


def failures(board: Board) -> list[dict[str, Any]]:
    """Entries with a failed seed: a cross each, side by side where they share a batch size."""
    rows: list[dict[str, Any]] = []
    for batch in board.batch_sizes:
        failed = [v for v in board.variants if batch in v.entries and v.entries[batch].failures]
        rows += [
            {
                "variant": variant.name,
                "x": _across(board, batch) + 13 * (i - (len(failed) - 1) / 2),
                "pixel": FAILURE_ROW,
            }
            for i, variant in enumerate(failed)
        ]
    return rows


def labels(board: Board, scale: ErrorScale) -> list[dict[str, Any]]:
    """One name per line, beside its last point, moved apart where lines end close together."""
    ends: list[dict[str, Any]] = []
    for variant in board.variants:
        measured = {b: e.interval for b, e in variant.entries.items() if e.interval is not None}
        last = max(measured, default=max(variant.entries))
        end = measured.get(last)
        height = FAILURE_ROW if end is None else scale.pixel(100 - 100 * end.mean)
        name = variant.name if end is not None else f"{variant.name}: no result"
        at = _across(board, last)
        ends.append(
            {"variant": variant.name, "name": name, "from": height, "to": height}
            | {"x": WIDTH, "start": at + 7, "end": WIDTH + 30}
        )
    ends.sort(key=lambda end: end["from"])
    _spread(ends)
    return ends


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


def _across(board: Board, batch: float) -> float:
    low, high = (math.log2(b) for b in batch_domain(board))
    return WIDTH * (math.log2(batch) - low) / (high - low)


def batch_domain(board: Board) -> tuple[float, float]:
    """Ends of the horizontal axis: the batch sizes and some air."""
    return board.batch_sizes[0] / 2**0.3, board.batch_sizes[-1] * 2**0.3
