"""Records of speed and memory to cost boards: pure functions to frozen dataclasses.

A ratio is the variant's figure over that of the same model with `batch_norm`, measured in the same
process: above 1 is slower, or larger. Ratios depend on the hardware, the model, the batch and the
size of the images, so a board holds one of everything but variant and batch size, and no two
hardware classes are ever put together.
"""

from __future__ import annotations

import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import polars as pl

from normbench.cells import NOT_WORK, canonical_json, digest
from normbench.leaderboard.boards import chosen_rows, is_older, reference_variant
from normbench.leaderboard.catalogue import Catalogue
from normbench.leaderboard.rows import Row, read_rows
from normbench.stats import t_interval

TASKS = ("throughput", "memory", "layer")
MODES = ("train", "forward", "inference", "inference_folded")
SHAPE = ("channels", "height", "width")
"""Options of a cell of task `layer` that make its column, with the batch size."""

COUNTED = frozenset({"saved_ratio"})
"""Ratios of counts: the same in every run, so that a record holds them without an interval."""

DRIFT = 0.1
"""Change of the times between the halves of a measurement from which on it is told."""

Column = tuple[int, ...]
"""What a column of a board is for: the batch size, or N, C, H and W of a layer alone."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A ratio, and as much as is known of its uncertainty.

    Attributes:
        value: of one record; of several seeds, their mean.
        low: lower bound; NaN where there is none.
        high: upper bound; NaN where there is none.
        n: how many seeds it rests on.
        over: what the interval is over: the `rounds` of one process, `seeds` (Student's t), or
            nothing, as it is a `count`; empty where there is no interval.
    """

    value: float
    low: float
    high: float
    n: int
    over: Literal["rounds", "seeds", "count", ""]

    @property
    def bounded(self) -> bool:
        """Whether there are bounds."""
        return not math.isnan(self.low)

    @property
    def apart(self) -> bool:
        """Whether it is known to differ from 1: there are bounds, and they do not enclose 1."""
        return self.bounded and not self.low <= 1 <= self.high


@dataclass(frozen=True, slots=True)
class CostEntry:
    """One variant in one column.

    Attributes:
        measured: the metrics of each seed that ended `ok`.
        statuses: how many seeds ended how, `ok` included.
        reasons: what failed seeds said, without repetition.
        older_code: the records come from an earlier version of the method's code.
    """

    variant: str
    column: Column
    measured: tuple[Mapping[str, float], ...]
    statuses: Mapping[str, int]
    reasons: tuple[str, ...]
    older_code: bool

    @property
    def failures(self) -> dict[str, int]:
        """The statuses other than `ok`."""
        return {status: n for status, n in self.statuses.items() if status != "ok"}

    @property
    def seeds(self) -> int:
        """Seeds with a record, whatever their status."""
        return sum(self.statuses.values())

    @property
    def drifted(self) -> bool:
        """Whether the second half of the rounds took longer or less long than the first."""
        return abs((self.median("drift") or 1) - 1) > DRIFT

    def values(self, metric: str) -> list[float]:
        """A metric of every seed that has it."""
        return [metrics[metric] for metrics in self.measured if metric in metrics]

    def median(self, metric: str) -> float | None:
        """Median of a metric over the seeds; None if no record has it."""
        values = self.values(metric)
        return statistics.median(values) if values else None

    def ratio(self, name: str = "ratio") -> Figure | None:
        """A ratio with its interval: over seeds if there are several, else the record's own.

        Args:
            name: `ratio`, `graph_ratio`, `saved_ratio` or `peak_ratio`.
        """
        values = self.values(name)
        if not values:
            return None
        value = statistics.fmean(values)
        if name in COUNTED and len(set(values)) == 1:
            return Figure(value, value, value, len(values), "count")
        if len(values) > 1:
            spread = t_interval(values)
            return Figure(value, spread.low, spread.high, len(values), "seeds")
        [own] = (metrics for metrics in self.measured if name in metrics)
        if f"{name}_low" in own and f"{name}_high" in own:
            return Figure(value, own[f"{name}_low"], own[f"{name}_high"], 1, "rounds")
        return Figure(value, math.nan, math.nan, 1, "")


@dataclass(frozen=True, slots=True)
class CostVariant:
    """A row of a board; `entries` by column."""

    name: str
    method: str
    family: str
    entries: Mapping[Column, CostEntry]


@dataclass(frozen=True, slots=True)
class CostBoard:
    """Costs that may be compared with each other.

    Attributes:
        config: the task's options, without what makes the columns and what changes no figure.
        setting: short digest of model arguments and options.
        variants: by family, method and name; never by ratio.
        reference: the variant that is `batch_norm` itself, whose ratio is the board's own check;
            empty if it was not measured.
        columns: ascending.
        rows: the records the entries rest on.
        superseded: whether the same was measured by a later protocol too.
    """

    task: str
    model: str
    model_args: Mapping[str, Any]
    hardware_class: str
    precision: str
    protocol: int
    config: Mapping[str, Any]
    setting: str
    variants: tuple[CostVariant, ...]
    reference: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    superseded: bool = False

    @property
    def entries(self) -> Iterator[CostEntry]:
        """All entries, in table order."""
        return (entry for variant in self.variants for entry in variant.entries.values())

    @property
    def failures(self) -> list[CostEntry]:
        """Entries with a seed that did not end `ok`, in table order."""
        return [entry for entry in self.entries if entry.failures]

    @property
    def metrics(self) -> frozenset[str]:
        """Names of the metrics that any entry has."""
        return frozenset(name for entry in self.entries for m in entry.measured for name in m)

    @property
    def anchor(self) -> str:
        """An id for the page, the same whatever else the site holds."""
        return f"costs-{digest(list(_conditions(self.rows[0])))}"

    @property
    def null(self) -> CostVariant | None:
        """`batch_norm` against itself; None if it was not measured."""
        return next((v for v in self.variants if v.name == self.reference), None)

    def level(self, column: Column, name: str = "ratio") -> tuple[int, int]:
        """How many of a column's ratios have an interval that holds 1, and how many have one."""
        found = [v.entries[column].ratio(name) for v in self.variants if column in v.entries]
        known = [figure for figure in found if figure is not None and figure.bounded]
        return sum(not figure.apart for figure in known), len(known)


def cost_boards(frame: pl.DataFrame, catalogue: Catalogue) -> list[CostBoard]:
    """All boards of the tasks `TASKS`, by task, hardware class, model, precision and mode.

    Of one thing measured by several protocols, the latest comes first.

    Of repeats the latest record counts, as on boards of accuracy; a record of a method's eager
    path enters none.

    Args:
        frame: what `normbench.store.Store.read` returns.
        catalogue: current code hashes and families.
    """
    groups: dict[tuple[str, ...], list[Row]] = defaultdict(list)
    for row in read_rows(frame.filter(pl.col("task").is_in(TASKS))):
        if not row.fallback:
            groups[_conditions(row)].append(row)
    latest: dict[tuple[str, ...], int] = defaultdict(int)
    for (*what, _), rows in groups.items():
        latest[tuple(what)] = max(latest[tuple(what)], rows[0].protocol)
    boards = (
        replace(_board(rows, catalogue), superseded=rows[0].protocol < latest[tuple(what)])
        for (*what, _), rows in groups.items()
    )
    return sorted(boards, key=_order)


def _conditions(row: Row) -> tuple[str, ...]:
    """What rows of one board share: what is measured and where, and last by which protocol."""
    return (
        row.task, row.model, canonical_json(row.cell["model_args"]), row.dataset,
        row.hardware_class, row.precision, canonical_json(_config(row)), str(row.protocol),
    )  # fmt: skip


def _config(row: Row) -> dict[str, Any]:
    left_out = (*NOT_WORK["config"], *(SHAPE if row.task == "layer" else ()))
    return {k: v for k, v in row.cell["config"].items() if k not in left_out}


def _column(row: Row) -> Column:
    sizes = [row.cell["config"][name] for name in SHAPE] if row.task == "layer" else []
    return (row.batch_size, *sizes)


def _order(board: CostBoard) -> tuple[Any, ...]:
    mode = board.config.get("mode", "")
    place = MODES.index(mode) if mode in MODES else len(MODES)
    rest = (canonical_json(board.config), board.setting, -board.protocol)
    return (
        TASKS.index(board.task), board.hardware_class, board.model, board.precision, place, *rest,
    )  # fmt: skip


def _board(rows: Sequence[Row], catalogue: Catalogue) -> CostBoard:
    cells: dict[tuple[str, Column], list[Row]] = defaultdict(list)
    for row in rows:
        cells[row.variant, _column(row)].append(row)
    chosen = {key: chosen_rows(candidates, catalogue) for key, candidates in cells.items()}
    columns = tuple(sorted({column for _, column in chosen}))
    variants = []
    for name, method in {row.variant: row.method for row in rows}.items():
        found = {c: _entry(chosen[name, c], c, catalogue) for c in columns if (name, c) in chosen}
        known = catalogue.get(method)
        variants.append(CostVariant(name, method, known.family if known else "", found))
    variants.sort(key=lambda v: (not v.family, v.family, v.method, v.name))
    first, config = rows[0], _config(rows[0])
    args = first.cell["model_args"]
    return CostBoard(
        first.task, first.model, args, first.hardware_class, first.precision, first.protocol,
        config, digest([args, config])[:8], tuple(variants), reference_variant(rows), columns,
        tuple(row for group in chosen.values() for row in group),
    )  # fmt: skip


def _entry(rows: Sequence[Row], column: Column, catalogue: Catalogue) -> CostEntry:
    return CostEntry(
        variant=rows[0].variant,
        column=column,
        measured=tuple(row.metrics for row in rows if row.status == "ok"),
        statuses=dict(Counter(row.status for row in rows)),
        reasons=tuple(dict.fromkeys(row.reason for row in rows if row.reason)),
        older_code=is_older(rows[0], catalogue),
    )
