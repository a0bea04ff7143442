"""Selecting, grouping and sorting records for `normbench results`.

Frames in, frames out. Polars is imported inside the functions, as the command line must start
without it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from normbench.cells import STATUSES, Record, digest, settings, with_data
from normbench.stats import Interval, t_interval

if TYPE_CHECKING:
    import polars as pl

LEVEL = 0.95
GROUPS = (
    "suite", "task", "method", "variant", "model", "dataset", "batch_size", "seed", "precision",
    "hardware_class", "code_hash", "protocol", "submitter", "data_fingerprint", "fallback",
)  # fmt: skip
"""Columns that records can be grouped by."""

UNMIXABLE = (
    "task", "precision", "hardware_class", "protocol", "settings", "code_hash", "data_fingerprint",
    "fallback",
)  # fmt: skip
"""Columns that are never averaged over: where they vary within a group they split it.

`settings` is a digest of the training options and of the model's and data's arguments.
"""

WITHIN = {
    "code_hash": ("variant",),
    "data_fingerprint": ("dataset", "settings"),
    "fallback": ("variant",),
}
"""What unlike values are natural between: a `code_hash` or a `fallback` splits a group only where
one variant has several, a `data_fingerprint` only where one data set, asked for alike, has several.
"""


class QueryError(ValueError):
    """A question that the records cannot answer as asked: unknown column, wrong value."""


def check_names(given: Iterable[str], valid: Sequence[str], kind: str) -> None:
    """Refuse names that do not exist.

    Raises:
        QueryError: for the first unknown name, with the nearest valid one.
    """
    for name in given:
        if name not in valid:
            close = difflib.get_close_matches(name, valid, n=1, cutoff=0.6)
            hint = f"did you mean {close[0]!r}?" if close else f"valid: {', '.join(valid)}"
            raise QueryError(f"unknown {kind} {name!r}; {hint}")


def parse_filters(filters: Sequence[str], valid: Sequence[str]) -> dict[str, list[str]]:
    """`["method=none", "seed=0", "seed=1"]` as `{"method": ["none"], "seed": ["0", "1"]}`.

    Raises:
        QueryError: for a filter without `=`, or an unknown key.
    """
    wanted: dict[str, list[str]] = {}
    for text in filters:
        key, equals, value = text.partition("=")
        if not equals:
            raise QueryError(f"filter {text!r} is not KEY=VALUE, such as batch_size=2")
        check_names([key], valid, "column")
        wanted.setdefault(key, []).append(value)
    return wanted


def matching(frame: pl.DataFrame, wanted: Mapping[str, Sequence[str]]) -> pl.DataFrame:
    """Rows that have one of the values of every key.

    Raises:
        QueryError: for a value that is no number where the column has numbers.
    """
    import polars as pl

    for key, texts in wanted.items():
        values: list[Any] = list(texts)
        kind = frame.schema[key]
        if kind.is_numeric():
            values = [_number(key, text, whole=kind.is_integer()) for text in texts]
        frame = frame.filter(pl.col(key).is_in(values))
    return frame


def _number(key: str, text: str, whole: bool) -> float:
    try:
        return int(text) if whole else float(text)
    except ValueError:
        expected = "a whole number" if whole else "a number"
        raise QueryError(f"filter {key}={text}: {text!r} is not {expected}") from None


def ordered(frame: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    """Sorted by columns; `-name` means descending. Missing values come last.

    Raises:
        QueryError: for an unknown column.
    """
    names = [key.removeprefix("-") for key in keys]
    # A group's metric is sorted by its mean.
    columns = [f"{n}_mean" if f"{n}_mean" in frame.columns else n for n in names]
    check_names(columns, frame.columns, "column to sort by:")
    if not columns:
        return frame
    falling = [key.startswith("-") for key in keys]
    return frame.sort(columns, descending=falling, nulls_last=True, maintain_order=True)


def grouped(
    records: Sequence[Record], columns: Sequence[str], metrics: Sequence[str]
) -> tuple[pl.DataFrame, list[str], list[str]]:
    """Mean and t interval over seeds of every metric, for each group of records.

    A seed's value is the mean over its `ok` records in the group. Columns of `UNMIXABLE` that
    vary within a group are added to the grouping.

    Args:
        records: one per configuration (see `summary.latest_records`).
        columns: of `GROUPS`.
        metrics: names of metrics.

    Returns:
        A frame with the group's columns, for each metric `…_mean`, `…_low`, `…_high` and `…_n`
        (seeds), and the number of records of each status; the columns grouped by; notes on what
        was averaged, one sentence each.
    """
    import polars as pl

    records = with_data(records)
    by = [*columns]
    for name in UNMIXABLE:
        if name not in by and _varies(records, [*columns, *WITHIN.get(name, ())], name):
            by.append(name)
    rows = []
    for key, members in _groups(records, by).items():
        row: dict[str, Any] = dict(zip(by, key, strict=True))
        for metric in metrics:
            interval = _over_seeds(members, metric)
            bounded = interval is not None and interval.bounded
            row[f"{metric}_mean"] = interval.mean if interval else None
            row[f"{metric}_low"] = interval.low if interval and bounded else None
            row[f"{metric}_high"] = interval.high if interval and bounded else None
            row[f"{metric}_n"] = interval.n if interval else 0
        row |= {status: sum(r.status == status for r in members) for status in STATUSES}
        rows.append(row)
    frame = pl.DataFrame(rows, infer_schema_length=None)
    nothing = [name for name, kind in frame.schema.items() if kind == pl.Null]
    return frame.with_columns(pl.col(nothing).cast(pl.Float64)), by, _notes(records, by)


def interval_of(row: Mapping[str, Any], metric: str) -> Interval | None:
    """The interval that `grouped` took apart; None where no seed has a value."""
    mean, low, high = (row[f"{metric}_{part}"] for part in ("mean", "low", "high"))
    if mean is None:
        return None
    low, high = (float("nan") if bound is None else bound for bound in (low, high))
    return Interval(mean, low, high, row[f"{metric}_n"], LEVEL, "t")


def _value(record: Record, name: str) -> Any:
    if name == "settings":
        cell = record.cell
        return digest([cell.model_args, settings(cell)])[:6]
    return getattr(record if hasattr(record, name) else record.cell, name)


def _groups(records: Sequence[Record], by: Sequence[str]) -> dict[tuple[Any, ...], list[Record]]:
    groups: dict[tuple[Any, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(tuple(_value(record, name) for name in by), []).append(record)
    return groups


def _varies(records: Sequence[Record], by: Sequence[str], name: str) -> bool:
    return any(
        len({_value(record, name) for record in members}) > 1
        for members in _groups(records, by).values()
    )


def _over_seeds(members: Sequence[Record], metric: str) -> Interval | None:
    by_seed: dict[int, list[float]] = {}
    for record in members:
        value = record.metrics.get(metric, float("nan"))
        if record.status == "ok" and value - value == 0:  # finite
            by_seed.setdefault(record.cell.seed, []).append(value)
    means = [sum(values) / len(values) for values in by_seed.values()]
    return t_interval(means, LEVEL) if means else None


def _notes(records: Sequence[Record], by: Sequence[str]) -> list[str]:
    """What a reader of the means must know: what they are averages of."""
    candidates = ("variant", "model", "dataset", "batch_size", "submitter")
    varying = [n for n in candidates if n not in by and _varies(records, by, n)]
    if not varying:
        return []
    notes = [f"a seed's value is the mean over its cells, which differ in {', '.join(varying)}"]
    uneven = 0
    for members in _groups(records, by).values():
        ok = [record.cell.seed for record in members if record.status == "ok"]
        seeds = {record.cell.seed for record in members}
        uneven += len({ok.count(seed) for seed in seeds}) > 1
    if uneven:
        notes.append(f"in {uneven} group{'s' * (uneven > 1)} the seeds have unlike sets of cells")
    return notes
