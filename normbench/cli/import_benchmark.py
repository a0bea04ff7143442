"""`normbench import-benchmark`: records from what pytest-benchmark measured."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

NAMED = 5
"""Benchmarks that are not ours are named up to this many."""


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("import-benchmark")(import_benchmark)


def import_benchmark(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="What pytest --benchmark-json wrote.", metavar="FILE...", show_default=False
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the records; $NORMBENCH_RESULTS or results/ by default."),
    ] = None,
) -> None:
    """Append the layer benchmarks in pytest-benchmark's JSON to the records.

    What is there already, with the same code, machine and environment, stays as it is. Nothing is
    written unless all files can be read.
    """
    from normbench import benchmark_json
    from normbench.engine.planning import results_folder
    from normbench.store import Store

    read = [benchmark_json.read(path) for path in files]
    store = Store(results_folder(out))
    records = [record for found in read for record in found.records]
    added = benchmark_json.add(store, records)
    for problem in store.problems:
        typer.echo(f"Warning: {problem}", err=True)
    typer.echo(f"{added} imported, {len(records) - added} there already. Records: {store.folder}/")
    if foreign := [name for found in read for name in found.foreign]:
        more = f" and {len(foreign) - NAMED} more" if len(foreign) > NAMED else ""
        typer.echo(f"Not ours: {', '.join(foreign[:NAMED])}{more}")
    for note in (note for found in read for note in found.notes):
        typer.echo(f"Note: {note}.", err=True)
