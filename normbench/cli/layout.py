"""How `normbench results` looks: tables for people, CSV, JSON and Parquet for programs."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from normbench.cells import STATUSES

if TYPE_CHECKING:
    import polars as pl

TABLE_COLUMNS = ("suite", "model", "dataset", "variant", "batch_size", "seed", "status")


def data_columns(
    frame: pl.DataFrame, chosen: Sequence[str], metric: Sequence[str] | None
) -> pl.DataFrame:
    """What CSV, JSON and Parquet hold: everything flat, or what was asked for."""
    from normbench.store import JSON_COLUMNS, SCHEMA

    nested = {*JSON_COLUMNS, "samples"}
    scalars = [name for name in frame.columns if name in SCHEMA and name not in nested]
    names = list(chosen) or scalars
    names += list(metric or ([] if chosen else [n for n in frame.columns if n not in SCHEMA]))
    return frame.select(list(dict.fromkeys(names)))


def encoded(frame: pl.DataFrame, style: str) -> bytes:
    """The frame as `csv`, `json` (a list of objects, nested fields as such) or `parquet`."""
    if style == "csv":
        return _flat(frame).write_csv().encode()
    if style == "json":
        from normbench.store import JSON_COLUMNS

        decoded = {*JSON_COLUMNS, "params"} & set(frame.columns)
        rows = [
            {name: _json_value(value, name in decoded) for name, value in row.items()}
            for row in frame.iter_rows(named=True)
        ]
        return (json.dumps(rows, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
    buffer = io.BytesIO()
    frame.write_parquet(buffer)
    return buffer.getvalue()


def _flat(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame with nested values as JSON text, the only form that CSV has for them."""
    import polars as pl

    nested = [name for name, kind in frame.schema.items() if kind.is_nested()]
    return frame.with_columns(
        pl.Series(name, [_json_text(value) for value in frame[name].to_list()], dtype=pl.String)
        for name in nested
    )


def _json_text(value: Any) -> str | None:
    return None if value is None else json.dumps(value, ensure_ascii=False)


def _json_value(value: Any, is_json: bool) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return json.loads(value) if is_json and value is not None else value


def table(frame: pl.DataFrame, chosen: Sequence[str], metrics: Sequence[str]) -> str:
    """Rows of text. By default, columns that are the same in every row stand above the table."""
    from normbench.summary import format_table, terminal_width

    names = list(dict.fromkeys([*(chosen or TABLE_COLUMNS), *metrics]))
    if not chosen:
        frame = _with_eager(frame)
        names += ["reason"] if frame["reason"].str.len_chars().max() else []
    heading = ""
    if not chosen and len(frame) > 1:
        liftable = ("suite", "model", "dataset")
        same = [n for n in names if n in liftable and frame[n].n_unique() == 1]
        heading = "  ".join(f"{name}: {frame[name][0]}" for name in same)
        names = [name for name in names if name not in same]
    rows = [
        [_text(value, name) for name, value in zip(names, row, strict=True)]
        for row in frame.select(names).iter_rows()
    ]
    if not chosen:
        _fit_last(names, rows, terminal_width())
    left = [i for i, name in enumerate(names) if not frame.schema[name].is_numeric()]
    body = format_table(names, rows, left)
    return f"{heading}\n\n{body}" if heading else body


def _with_eager(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame whose reasons begin with why a method ran its eager path, where it did."""
    import polars as pl

    told = (
        pl.when(pl.col("fallback") != "").then("eager: " + pl.col("fallback")).otherwise(pl.lit(""))
    )
    both = pl.when((told != "") & (pl.col("reason") != "")).then(pl.lit("; ")).otherwise(pl.lit(""))
    return frame.with_columns(reason=told + both + pl.col("reason"))


def _fit_last(header: Sequence[str], rows: list[list[str]], width: int) -> None:
    """Cut the last column where it would break the lines; CSV and JSON have it in full."""
    others = [
        max(len(line) for row in [header, *rows] for line in row[i].split("\n"))
        for i in range(len(header) - 1)
    ]
    room = max(20, width - sum(others) - 2 * len(others))
    for row in rows:
        row[-1] = row[-1] if len(row[-1]) <= room else row[-1][: room - 1] + "…"


def _text(value: Any, column: str) -> str:
    from normbench.stats import significant
    from normbench.summary import wrapped

    if value is None:
        return ""
    if column == "variant":
        return wrapped(value)
    return significant(value) if isinstance(value, float) else str(value)


def group_table(frame: pl.DataFrame, by: Sequence[str], metrics: Sequence[str]) -> str:
    """Groups with their intervals, and how many of their records are not `ok`."""
    from normbench.cli import query
    from normbench.summary import format_table

    rows: list[list[str]] = []
    failed = False
    for row in frame.iter_rows(named=True):
        total = sum(row[status] for status in STATUSES)
        other = [f"{s} {row[s]}/{total}" for s in STATUSES if s != "ok" and row[s]]
        failed = failed or bool(other)
        means = [str(query.interval_of(row, metric) or "") for metric in metrics]
        rows.append([*(_text(row[name], name) for name in by), *means, ", ".join(other)])
    header = [*by, *metrics, "not ok"]
    if not failed:
        header, rows = header[:-1], [row[:-1] for row in rows]
    text = [name for name in by if not frame.schema[name].is_numeric()] + ["not ok"]
    body = format_table(header, rows, [i for i, name in enumerate(header) if name in text])
    return f"{body}\n\nmean ± half of the 95% t interval over n seeds"
