"""`normbench results`: ask the records."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from normbench.cells import MAIN_METRICS, STATUSES

if TYPE_CHECKING:
    import polars as pl

    from normbench.store import Store

NOTHING_FOUND = 1
"""Exit code if there are no records, or none that match."""

DEFAULT_ORDER = ("task", "model", "dataset", "variant", "batch_size", "seed", "started_at")


class Format(StrEnum):
    """How results are written."""

    table = "table"
    csv = "csv"
    json = "json"
    parquet = "parquet"


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("results")(results)


def results(
    folder: Annotated[
        Path | None,
        typer.Option("--results", help="Folder; $NORMBENCH_RESULTS or results/ by default."),
    ] = None,
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter", metavar="KEY=VALUE", help="Only these; a key may be given several values."
        ),
    ] = None,
    status: Annotated[
        list[str] | None, typer.Option(help="Only records of this status; may be repeated.")
    ] = None,
    group: Annotated[
        str | None,
        typer.Option(metavar="COL,COL", help="Mean and interval over seeds for each group."),
    ] = None,
    metric: Annotated[
        list[str] | None, typer.Option(help="Metric to show; may be repeated.")
    ] = None,
    columns: Annotated[
        str | None, typer.Option(metavar="COL,COL", help="Columns to show, metrics among them.")
    ] = None,
    sort: Annotated[
        str | None, typer.Option(metavar="COL,COL", help="Columns to sort by; -COL descends.")
    ] = None,
    form: Annotated[
        Format | None,
        typer.Option("--format", help="Default: what --out ends in, else table."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write to this file instead.")] = None,
    where: Annotated[
        bool, typer.Option("--where", help="Print the files that hold the records.")
    ] = False,
) -> None:
    """Show the records: filter, group, sort; as a table, CSV, JSON or Parquet."""
    from normbench.cli import layout, query
    from normbench.store import Store

    store = Store(folder or Path(os.environ.get("NORMBENCH_RESULTS", "results")))
    if where:
        _deliver("".join(f"{path}\n" for path in _paths(store)).encode(), out)
        return
    if group and columns:
        raise query.QueryError("--group and --columns exclude each other; --metric goes with both")
    style = _format(form, out)
    if style is Format.parquet and out is None and sys.stdout.isatty():
        raise query.QueryError("Parquet is no text for a terminal; name a file with --out")
    frame = _records(store)
    chosen, keys = _split(columns), _split(sort)
    query.check_names(chosen, frame.columns, "column")
    if metric:
        query.check_names(metric, _measured(frame), "metric")
    found = _found(frame, filters or [], status or [])
    metrics = list(metric) if metric else _main_metrics(found)
    if group:
        _show_groups(store, found, _split(group), metrics, keys, style, out)
        return
    found = query.ordered(found, keys or DEFAULT_ORDER)
    if style is Format.table:
        shown = metrics if metric or not chosen else []
        _deliver(f"{layout.table(found, chosen, shown)}\n".encode(), out)
    else:
        _deliver(layout.encoded(layout.data_columns(found, chosen, metric), style), out)


def _found(frame: pl.DataFrame, filters: Sequence[str], status: Sequence[str]) -> pl.DataFrame:
    """The rows asked for; leaves with exit code 1 if there are none."""
    from normbench.cli import query

    names = [name for name, kind in frame.schema.items() if not kind.is_nested()]
    wanted = query.parse_filters(filters, names)
    query.check_names(status, STATUSES, "status")
    if status:
        wanted["status"] = [*wanted.get("status", []), *status]
    found = query.matching(frame, wanted)
    if found.is_empty():
        _nothing_matches(frame, wanted)
    return found


def _paths(store: Store) -> list[Path]:
    paths = store.paths()
    if not paths:
        _no_records(store)
    return paths


def _records(store: Store) -> pl.DataFrame:
    """All records, one column per metric; damaged files are named on stderr."""
    from normbench.store import wide

    frame = store.read()
    for problem in store.problems:
        typer.echo(f"Warning: {problem}", err=True)
    if frame.is_empty():
        _no_records(store)
    return wide(frame)


def _no_records(store: Store) -> None:
    typer.echo(
        f"No records in {store.folder}/. Make some with `normbench run suites/small-batch.yaml`, "
        "or name their folder with --results.",
        err=True,
    )
    raise typer.Exit(NOTHING_FOUND)


def _nothing_matches(frame: pl.DataFrame, wanted: Mapping[str, Sequence[str]]) -> None:
    asked = ", ".join(f"{key}={' or '.join(values)}" for key, values in wanted.items())
    typer.echo(f"None of {len(frame)} records has {asked}.", err=True)
    for key in wanted:
        there = frame[key].drop_nulls().unique().sort().to_list()
        shown = ", ".join(map(str, there[:12])) + (", …" if len(there) > 12 else "")
        typer.echo(f"  {key}: {shown}", err=True)
    raise typer.Exit(NOTHING_FOUND)


def _split(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def _measured(frame: pl.DataFrame) -> list[str]:
    """The columns that are metrics."""
    from normbench.store import SCHEMA

    return [name for name in frame.columns if name not in SCHEMA]


def _main_metrics(found: pl.DataFrame) -> list[str]:
    """The main metric of every task that was found, or else the first few metrics."""
    there = _measured(found)
    tasks = found["task"].unique().sort().to_list()
    main = dict.fromkeys(MAIN_METRICS[task] for task in tasks if task in MAIN_METRICS)
    return [name for name in main if name in there] or there[:3]


def _format(asked: Format | None, out: Path | None) -> Format:
    if asked is not None:
        return asked
    ending = out.suffix.removeprefix(".") if out else ""
    return Format(ending) if ending in Format.__members__ else Format.table


def _show_groups(
    store: Store, found: pl.DataFrame, columns: Sequence[str], metrics: Sequence[str],
    sort: Sequence[str], style: Format, out: Path | None,
) -> None:  # fmt: skip
    import polars as pl

    from normbench.cli import layout, query
    from normbench.summary import latest_records

    query.check_names(columns, query.GROUPS, "column to group by:")
    rows = store.read().filter(pl.col("record_id").is_in(found["record_id"].to_list()))
    everything = store.records(rows)
    records = latest_records(everything)
    frame, by, notes = query.grouped(records, columns, metrics)
    if older := len(everything) - len(records):
        notes.append(f"{older} older record{'s' * (older > 1)} of the same cells left out")
    frame = query.ordered(frame, sort or by)
    if style is not Format.table:
        _deliver(layout.encoded(frame, style), out)
    else:
        _deliver(f"{layout.group_table(frame, by, metrics)}\n".encode(), out)
    for note in notes:
        typer.echo(f"Note: {note}.", err=True)


def _deliver(content: bytes, out: Path | None) -> None:
    """Write to the file or to stdout; a reader that stops early, such as `head`, is no error."""
    if out is not None:
        out.write_bytes(content)
        return
    try:
        typer.echo(content, nl=False)  # flushes, so that a closed pipe is noticed here
    except BrokenPipeError:
        # Python flushes stdout once more as it ends: give that flush somewhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
