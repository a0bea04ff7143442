"""Records to boards: pure functions from the store's frame to frozen dataclasses.

A board never mixes what cannot be compared: one suite, task, model, data set and its state,
hardware class, protocol version, precision and training configuration. Within a board, one entry
stands for one variant at one batch size, over seeds. Failures are entries like any other.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from normbench.cells import MAIN_METRICS
from normbench.leaderboard.catalogue import Catalogue
from normbench.leaderboard.rows import Row, of_latest_data, read_rows
from normbench.spool import FAILED
from normbench.stats import (
    Interval,
    PairedDifference,
    Rank,
    paired_difference,
    t_interval,
    tie_groups,
)

METRIC = MAIN_METRICS["accuracy"]
REFERENCE_METHOD = "batch_norm"


@dataclass(frozen=True, slots=True)
class Entry:
    """One variant at one batch size.

    Attributes:
        values: the metric of each seed that ended `ok`.
        interval: mean of `values` with its 95% t interval; None if no seed ended `ok`.
        statuses: how many seeds ended how, `ok` included.
        reasons: what failed seeds said, without repetition.
        difference: paired difference to the board's reference; None for the reference itself and
            where no seed is common to both.
        rank: None where nothing was measured; `Rank.best` is None below five seeds.
        values_per_channel: smallest N·H·W over the slots; None if no record says.
        older_code: the records come from an earlier version of the method's code.
    """

    variant: str
    batch_size: int
    values: Mapping[int, float]
    interval: Interval | None
    statuses: Mapping[str, int]
    reasons: tuple[str, ...]
    difference: PairedDifference | None
    rank: Rank | None
    values_per_channel: int | None
    older_code: bool

    @property
    def seeds(self) -> int:
        """Seeds with a record, whatever their status."""
        return sum(self.statuses.values())

    @property
    def failures(self) -> dict[str, int]:
        """The statuses other than `ok`."""
        return {status: n for status, n in self.statuses.items() if status != "ok"}


@dataclass(frozen=True, slots=True)
class Variant:
    """A row of a board; `entries` by batch size."""

    name: str
    method: str
    family: str
    entries: Mapping[int, Entry]


@dataclass(frozen=True, slots=True)
class Contrast:
    """What one parameter does: two variants of the reference's method at one batch size."""

    changed: Entry
    reference: Entry
    parameter: str
    value: Any
    reference_value: Any
    difference: PairedDifference


@dataclass(frozen=True, slots=True)
class Board:
    """A comparison that may be made, and where it was measured.

    Attributes:
        variants: by family, method and name; never by score.
        reference: name of the variant that differences are taken to; empty if there is none.
        batch_sizes: the columns, ascending.
        rows: the records the entries rest on.
    """

    suite: str
    task: str
    model: str
    dataset: str
    hardware_class: str
    protocol: int
    precision: str
    setting: str
    variants: tuple[Variant, ...]
    reference: str
    batch_sizes: tuple[int, ...]
    rows: tuple[Row, ...]

    @property
    def ranked(self) -> bool:
        """Whether any entry has enough seeds for a rank."""
        ranks = [e.rank for v in self.variants for e in v.entries.values()]
        return any(rank is not None and rank.best is not None for rank in ranks)

    @property
    def failures(self) -> list[Entry]:
        """Entries with a seed that did not end `ok`, in table order."""
        return [e for v in self.variants for e in v.entries.values() if e.failures]

    def values_per_channel(self, batch_size: int) -> tuple[int, int] | None:
        """Smallest and largest over the variants at a batch size; None if no record says."""
        entries = [v.entries[batch_size] for v in self.variants if batch_size in v.entries]
        known = [e.values_per_channel for e in entries if e.values_per_channel is not None]
        return (min(known), max(known)) if known else None

    def training(self, metric: str, batch_size: int) -> tuple[int, int] | None:
        """Smallest and largest `steps` or `samples_seen` at a batch size; None if none is known."""
        rows = [row for row in self.rows if row.batch_size == batch_size and metric in row.metrics]
        known = [int(row.metrics[metric]) for row in rows]
        return (min(known), max(known)) if known else None

    @property
    def samples_differ(self) -> bool:
        """Whether trainings at some batch size saw more samples than those at another."""
        seen = {self.training("samples_seen", batch) for batch in self.batch_sizes} - {None}
        return len(seen) > 1


def boards(frame: pl.DataFrame, catalogue: Catalogue) -> list[Board]:
    """All boards of task `accuracy` that the records support, by suite, data set and model.

    A record of a method's eager path says nothing of its kernels: none enters a board, not even as
    a failure. `provenance.off_board` counts them.

    Args:
        frame: what `normbench.store.Store.read` returns.
        catalogue: current code hashes and families; methods it lacks are shown all the same.
    """
    groups: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    by_suite: dict[str, list[Row]] = defaultdict(list)
    for row in of_latest_data(row for row in read_rows(frame) if not row.fallback):
        if row.task == "accuracy":
            by_suite[row.suite].append(row)
            groups[row.board_key].append(row)
    references = {suite: reference_variant(rows) for suite, rows in by_suite.items()}
    made = [_board(rows, references[key[0]], catalogue) for key, rows in groups.items()]
    return sorted(
        made, key=lambda b: (b.suite, b.dataset, b.model, b.hardware_class, b.protocol, b.setting)
    )


def is_older(row: Row, catalogue: Catalogue) -> bool:
    """Whether the catalogue has newer code of the row's method than the row was measured with."""
    method = catalogue.get(row.method)
    return method is not None and method.code_hash != row.code_hash


def contrasts(board: Board) -> list[Contrast]:
    """At the smallest batch: variants that differ from the reference in one parameter alone."""
    params = {row.variant: row.params for row in board.rows}
    batch = board.batch_sizes[0]
    by_name = {v.name: v for v in board.variants}
    base = by_name[board.reference].entries.get(batch) if board.reference else None
    if base is None:
        return []
    found = []
    for variant in board.variants:
        entry = variant.entries.get(batch)
        if variant.method != by_name[board.reference].method or entry is None:
            continue
        mine, theirs = params[variant.name], params[board.reference]
        changed = [k for k in mine if mine[k] != theirs.get(k)]
        if len(changed) == 1 and entry.difference is not None:
            key = changed[0]
            found.append(Contrast(entry, base, key, mine[key], theirs.get(key), entry.difference))
    return found


def _board(rows: Sequence[Row], reference: str, catalogue: Catalogue) -> Board:
    cells: dict[tuple[str, int], list[Row]] = defaultdict(list)
    for row in rows:
        cells[row.variant, row.batch_size].append(row)
    chosen = {key: chosen_rows(candidates, catalogue) for key, candidates in cells.items()}
    kept = tuple(row for group in chosen.values() for row in group)
    batch_sizes = tuple(sorted({batch for _, batch in chosen}))
    names = {row.variant: row.method for row in kept}
    reference = reference if reference in names else ""
    ranks = {batch: _ranks(chosen, batch) for batch in batch_sizes}
    variants = []
    for name, method in names.items():
        entries = {
            batch: _entry(
                chosen[name, batch], chosen.get((reference, batch)), ranks[batch], catalogue
            )
            for batch in batch_sizes
            if (name, batch) in chosen
        }
        known = catalogue.get(method)
        variants.append(Variant(name, method, known.family if known else "", entries))
    variants.sort(key=lambda v: (not v.family, v.family, v.method, v.name))
    first = kept[0]
    return Board(
        first.suite, first.task, first.model, first.dataset, first.hardware_class, first.protocol,
        first.precision, first.setting, tuple(variants), reference, batch_sizes, kept,
    )  # fmt: skip


def chosen_rows(rows: Sequence[Row], catalogue: Catalogue) -> list[Row]:
    """One row per seed: of the current code or else of the newest older one, the latest record.

    Two code versions never share an entry. Of repeats the latest counts, not the best; but what
    says nothing of the method (a fault, a timeout) gives way to what does, as in the store.
    """
    current = [row for row in rows if not is_older(row, catalogue)]
    newest = max(current or rows, key=lambda row: row.started_at).code_hash
    latest: dict[int, Row] = {}
    for row in sorted(rows, key=lambda r: (r.status not in FAILED, r.started_at, r.record_id)):
        if row.code_hash == newest:
            latest[row.seed] = row
    return [latest[seed] for seed in sorted(latest)]


def _entry(
    rows: Sequence[Row],
    reference: Sequence[Row] | None,
    ranks: Mapping[str, Rank],
    catalogue: Catalogue,
) -> Entry:
    values = _values(rows)
    first = rows[0]
    base = _values(reference) if reference and reference[0].variant != first.variant else {}
    key = "min_values_per_channel"
    per_channel = [row.metrics[key] for row in rows if key in row.metrics]
    return Entry(
        variant=first.variant,
        batch_size=first.batch_size,
        values=values,
        interval=t_interval(values.values()) if values else None,
        statuses=dict(Counter(row.status for row in rows)),
        reasons=tuple(dict.fromkeys(row.reason for row in rows if row.reason)),
        difference=paired_difference(values, base) if values.keys() & base.keys() else None,
        rank=ranks.get(first.variant),
        values_per_channel=int(min(per_channel)) if per_channel else None,
        older_code=is_older(first, catalogue),
    )


def _ranks(chosen: Mapping[tuple[str, int], Sequence[Row]], batch_size: int) -> dict[str, Rank]:
    values = {name: _values(rows) for (name, batch), rows in chosen.items() if batch == batch_size}
    # A variant that failed on some seeds is not ranked by the seeds it survived.
    complete = {
        name: by_seed
        for name, by_seed in values.items()
        if by_seed and len(by_seed) == len(chosen[name, batch_size])
    }
    return {rank.name: rank for rank in tie_groups(complete)} if complete else {}


def _values(rows: Sequence[Row]) -> dict[int, float]:
    return {r.seed: r.metrics[METRIC] for r in rows if r.status == "ok" and METRIC in r.metrics}


def reference_variant(rows: Sequence[Row]) -> str:
    """BatchNorm as everybody has it: the usual eps (1e-5 or the slot's own), nothing else special.

    When it was measured has no say, so that a rerun does not change what a board compares to.
    """
    candidates = [row for row in rows if row.method == REFERENCE_METHOD]
    if not candidates:
        return ""

    def order(row: Row) -> tuple[bool, int, str]:
        special = row.variant.count("=")  # a variant's name holds what differs from the defaults
        return row.params.get("eps") not in (None, 1e-5), special, row.variant

    return min(candidates, key=order).variant
