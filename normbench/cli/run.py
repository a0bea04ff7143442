"""`normbench run`: from a suite to records, skipping what is measured already."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from normbench.cells import Record
    from normbench.engine import RunPlan, RunSummary


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("run")(run)


def run(
    suite: Annotated[Path, typer.Argument(help="The suite's YAML file.", metavar="SUITE")],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the records; $NORMBENCH_RESULTS or results/ by default."),
    ] = None,
    filters: Annotated[
        list[str] | None,
        typer.Option(
            "--filter", metavar="KEY=VALUE", help="Run only matching cells; may be repeated."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the cells and what they cost; run nothing.")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Run cells that ended error or timeout again.")
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Worker processes; 0 runs in this one. Default: one per core."),
    ] = None,
    wandb: Annotated[
        str | None,
        typer.Option(
            help="offline, online or disabled; by default online with a key, else offline."
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Run a suite: what is measured already is skipped, the rest appended to the records."""
    from normbench.cli.progress import display
    from normbench.engine import plan
    from normbench.engine import run as run_cells
    from normbench.engine.planning import results_folder
    from normbench.leaderboard.sources import accepted

    folder = results_folder(out)
    if dry_run:
        planned = plan(
            suite, out=folder, device=device, filters=filters or (), retry_failed=retry_failed,
            workers=workers, elsewhere=accepted(),
        )  # fmt: skip
        typer.echo("\n".join(describe(planned)))
        for problem in planned.problems:
            typer.echo(f"Warning: {problem}", err=True)
        return
    from normbench.tracking import open_sink

    sink = open_sink(wandb, folder)
    with display() as show:
        try:
            summary = run_cells(
                suite, out=folder, device=device, workers=workers, filters=filters or (),
                retry_failed=retry_failed, sinks=(sink,), on_event=show, elsewhere=accepted(),
            )  # fmt: skip
        finally:
            sink.close()
    for problem in (*summary.problems, *sink.problems):
        typer.echo(f"Warning: {problem}", err=True)
    report(summary, folder)


def describe(planned: RunPlan) -> Iterable[str]:
    """The lines of `--dry-run`: every cell that would run, counts, cost, eager paths."""
    from normbench.cells import fell_back
    from normbench.cli.progress import opening, span
    from normbench.engine.execute import fallback

    for cell, seconds in zip(planned.to_run, planned.seconds, strict=True):
        cost = f"  about {span(seconds)}" if seconds is not None else ""
        yield (
            f"{cell.task}  {cell.variant}  {cell.model}  {cell.dataset}  batch {cell.batch_size}"
            f"  seed {cell.seed}{cost}"
        )
    yield opening(planned.total, planned.skipped, planned.expected_seconds, planned.borrowed)
    eager = ((cell.method, fallback(cell, planned.device)) for cell in planned.to_run)
    yield from fell_back(eager, "would run")
    if planned.expected_seconds is None and planned.to_run:
        yield "The cost is not known yet: no cell of this kind was measured so far."


def report(summary: RunSummary, folder: Path) -> None:
    """Print the table of results and what went wrong; leave with the exit code that says it."""
    from normbench.summary import table

    if summary.records:
        typer.echo(table(summary.records))
    counts = collections.Counter(record.status for record in summary.records)
    statuses = ", ".join(f"{count} {status}" for status, count in counts.most_common())
    typer.echo(f"{summary.total} cells: {statuses or 'none has a record'}. Records: {folder}/")
    for line in reasons(summary.records):
        typer.echo(line, err=True)
    if counts["error"] + counts["timeout"]:
        typer.echo("Run again with --retry-failed to repeat the failed cells.", err=True)
    elif summary.exit_code == 1:
        typer.echo("Error: no cell was measured", err=True)
    raise typer.Exit(summary.exit_code)


def reasons(records: Iterable[Record]) -> Iterable[str]:
    """One line per distinct failure: status, reason, the first cell, how many more."""
    groups: dict[tuple[str, str], list[Record]] = collections.defaultdict(list)
    for record in records:
        if record.status != "ok":
            groups[record.status, record.reason].append(record)
    for (status, reason), members in groups.items():
        cell = members[0].cell
        more = f" and {len(members) - 1} more" if len(members) > 1 else ""
        yield (
            f"{status}: {cell.variant}, {cell.model}, batch {cell.batch_size}, "
            f"seed {cell.seed}{more}: {reason}"
        )
