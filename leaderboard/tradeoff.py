"""Accuracy against cost: accuracy boards joined with cost boards, variant by variant."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from normbench.leaderboard.boards import Board, Entry
from normbench.leaderboard.costs import CostBoard, CostEntry, Figure
from normbench.stats import Interval

RATIOS = {"throughput": "ratio", "memory": "saved_ratio"}
"""The ratio that stands for the cost, by task."""

LEAST = {True: 2, False: 3}
"""Variants that both boards must have, by whether they are of the same model. Of one alone there is
nothing to weigh, and two of different models say too little for a chart."""

Place = Literal["front", "not separated", "dominated"]


@dataclass(frozen=True, slots=True)
class Point:
    """A variant with both.

    Attributes:
        place: `front` if no other point is at least as accurate at no higher a cost and better in
            one of the two, by means alone. `not separated` if one is, but both intervals overlap
            those of a point on the front.
    """

    variant: str
    method: str
    family: str
    accuracy: Interval
    cost: Figure
    place: Place
    older_code: bool


@dataclass(frozen=True, slots=True)
class Tradeoff:
    """One accuracy board at one batch size against one cost board.

    Attributes:
        points: in the accuracy board's order.
        left_out: variants of the accuracy board without a point, and why.
        same_model: whether accuracy and cost were measured on the same model.
        same_size: false where its layers are known to see more or fewer values per channel in one
            than in the other: images of another size.
    """

    board: Board
    costs: CostBoard
    batch_size: int
    points: tuple[Point, ...]
    left_out: tuple[tuple[str, str], ...]
    same_model: bool
    same_size: bool

    @property
    def front(self) -> list[Point]:
        """The points on the front, the cheapest first."""
        return sorted(
            (p for p in self.points if p.place == "front"), key=lambda p: (p.cost.value, p.variant)
        )


def tradeoffs(boards: Sequence[Board], costs: Sequence[CostBoard]) -> list[Tradeoff]:
    """Every pair of an accuracy board's batch size and a cost board that has it.

    Cost boards of training steps and of memory count, by the latest protocol. Those of the accuracy
    board's own model, if one has the batch size; else those of other models. Pairs with fewer than
    `LEAST` variants in common are left out.
    """
    found = []
    for board in boards:
        for batch in board.batch_sizes:
            for cost, same in _partners(board, batch, costs):
                made = _join(board, cost, batch, same)
                if len(made.points) >= LEAST[same]:
                    found.append(made)
    return found


def front(points: Sequence[tuple[float, float]]) -> set[int]:
    """Indices of the Pareto front of (accuracy, cost): what no other point dominates.

    A point dominates another if it is at least as accurate at no higher a cost, and better in one.
    """
    kept: set[int] = set()
    best: tuple[float, float] | None = None
    for index in sorted(range(len(points)), key=lambda i: (points[i][1], -points[i][0])):
        accuracy = points[index][0]
        if best is None or accuracy > best[0]:
            best = points[index]
        if points[index] == best:
            kept.add(index)
    return kept


def _partners(
    board: Board, batch: int, costs: Iterable[CostBoard]
) -> Iterator[tuple[CostBoard, bool]]:
    able = [cost for cost in costs if (batch,) in cost.columns and _counts(cost)]
    args = board.rows[0].cell["model_args"]
    for task in RATIOS:
        of_task = [cost for cost in able if cost.task == task]
        same = [c for c in of_task if (c.model, c.model_args) == (board.model, args)]
        yield from ((cost, bool(same)) for cost in same or of_task)


def _counts(cost: CostBoard) -> bool:
    trains = cost.task == "memory" or cost.config.get("mode") == "train"
    return trains and not cost.superseded


def _join(board: Board, costs: CostBoard, batch: int, same: bool) -> Tradeoff:
    theirs = {variant.name: variant.entries.get((batch,)) for variant in costs.variants}
    points, left_out, sizes = [], [], set()
    for variant in board.variants:
        if (entry := variant.entries.get(batch)) is None:
            continue
        cost = theirs.get(variant.name)
        ratio = cost.ratio(RATIOS[costs.task]) if cost else None
        if cost is None or ratio is None or entry.interval is None or _failed(entry, cost):
            left_out.append((variant.name, _why(entry, cost)))
            continue
        older = entry.older_code or cost.older_code
        sizes.add(_same_size(entry, cost))
        points.append(
            Point(
                variant.name, variant.method, variant.family, entry.interval, ratio,
                "dominated", older,
            )
        )  # fmt: skip
    return Tradeoff(
        board, costs, batch, tuple(_placed(points)), tuple(left_out), same, False not in sizes
    )


def _same_size(entry: Entry, cost: CostEntry) -> bool:
    values = cost.median("min_values_per_channel")
    return values is None or entry.values_per_channel in (None, values)


def _placed(points: Sequence[Point]) -> Iterator[Point]:
    on_front = front([(point.accuracy.mean, point.cost.value) for point in points])
    ahead = [points[i] for i in on_front]
    for index, point in enumerate(points):
        near = any(_overlap(point, other) for other in ahead)
        rest: Place = "not separated" if near else "dominated"
        yield replace(point, place="front" if index in on_front else rest)


def _overlap(a: Point, b: Point) -> bool:
    return _meet(a.accuracy, b.accuracy) and _meet(a.cost, b.cost)


def _meet(a: Interval | Figure, b: Interval | Figure) -> bool:
    """Without bounds nothing is known of how far it may reach, so nothing tells the two apart."""
    if not (a.bounded and b.bounded):
        return True
    return a.low <= b.high and b.low <= a.high


def _failed(entry: Entry, cost: CostEntry) -> bool:
    """Whether either lost a seed: a mean over the survivors is not weighed against whole ones."""
    return bool(entry.failures or cost.failures)


def _why(entry: Entry, cost: CostEntry | None) -> str:
    if entry.failures:
        return "accuracy: " + _told(entry)
    if cost is None:
        return "no cost record"
    return "cost: " + _told(cost) if cost.failures else "a figure is missing"


def _told(entry: Entry | CostEntry) -> str:
    counts = (f"{n} of {entry.seeds} {status}" for status, n in entry.failures.items())
    reasons = f" ({'; '.join(entry.reasons)})" if entry.reasons else ""
    return ", ".join(counts) + reasons
