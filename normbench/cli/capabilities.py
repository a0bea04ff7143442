"""`normbench capabilities`: what methods can do, measured; as a table, Markdown or JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from normbench.cells import Cell

DEVICE = "cpu"
"""Where methods are examined: the answers hold everywhere, times are relative."""


class Format(StrEnum):
    """How the matrix is written."""

    table = "table"
    markdown = "markdown"
    json = "json"


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("capabilities")(capabilities)


def capabilities(
    methods: Annotated[
        list[str] | None,
        typer.Argument(metavar="[METHOD]...", help="Such as group_norm(groups=8). Default: all."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the records; $NORMBENCH_RESULTS or results/ by default."),
    ] = None,
    form: Annotated[
        Format, typer.Option("--format", help="How the matrix is written.")
    ] = Format.table,
    workers: Annotated[
        int | None,
        typer.Option(min=0, help="Worker processes; 0 runs in this one. Default: one per core."),
    ] = None,
    fast: Annotated[
        bool, typer.Option("--fast", help="Leave out probes that take seconds.")
    ] = False,
) -> None:
    """Measure what methods can do, but for those with a record already, and show the matrix."""
    from normbench.cli import capability_matrix
    from normbench.cli.progress import display
    from normbench.engine import run

    with display() as show:
        summary = run(cells(methods or (), fast), out=out, device=DEVICE, workers=workers,
            retry_failed=True,
                      on_event=show)  # fmt: skip
    for problem in summary.problems:
        typer.echo(f"Warning: {problem}", err=True)
    records = sorted(summary.records, key=lambda record: record.cell.variant)
    if form is Format.json:
        content = capability_matrix.content(records)
        typer.echo(json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False))
    else:
        typer.echo(capability_matrix.text(records, markdown=form is Format.markdown))
    raise typer.Exit(summary.exit_code)


def cells(variants: Sequence[str], fast: bool) -> list[Cell]:
    """The cells of the variants asked for; of every method with its defaults if none is."""
    from normbench.registry import list_methods, parse_variant
    from normbench.tasks import capability

    wanted = [parse_variant(text) for text in variants] or [(n, {}) for n in list_methods()]
    return [capability.cell(name, params, fast=fast) for name, params in wanted]
