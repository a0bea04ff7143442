"""`normbench coverage`: what surgery does to a member of every timm model family."""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from normbench.engine.isolation import Limits
    from normbench.surgery.coverage import Coverage, Member

CHUNK = 16
"""Models whose sizes one process measures: a few seconds, so that a crash costs little."""


class Format(StrEnum):
    """How the rows are written."""

    table = "table"
    markdown = "markdown"
    json = "json"


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("coverage")(coverage)


def coverage(
    models: Annotated[
        str, typer.Option(metavar="PATTERN", help="Names of models ('res*'), or one family.")
    ] = "*",
    form: Annotated[Format, typer.Option("--format", help="How it is written.")] = Format.table,
    out: Annotated[Path | None, typer.Option(help="Write to this file instead.")] = None,
    train: Annotated[
        bool, typer.Option("--train", help="Take two optimizer steps after each swap, too.")
    ] = False,
    seconds: Annotated[float, typer.Option(min=1, help="Wall time that one model may take.")] = 60,
    memory: Annotated[
        float, typer.Option(min=0.5, metavar="GB", help="Memory that one model may take.")
    ] = 3,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Models at a time.  [default: one a core, at most 4]"),
    ] = None,
) -> None:
    """Swap norms in the smallest member of every timm model family and tell what happened.

    A model that fails is a row with its reason. The whole of timm takes some minutes.
    """
    from normbench.cli import coverage_text
    from normbench.engine.isolation import Limits
    from normbench.surgery.coverage import families
    from normbench.timing.machine import available_cores

    names = families(models)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.open("a").close()  # better to fail now than after minutes
    at_a_time = workers or min(available_cores(), 4)
    limits = Limits(seconds, memory, threads=max(1, available_cores() // at_a_time))
    chosen = _chosen(names, at_a_time, limits)
    rows = sorted(_rows(chosen, at_a_time, limits, train), key=lambda row: row.family)
    text = coverage_text.written(rows, form, models, limits, train)
    if out is None:
        typer.echo(text, nl=False)
    else:
        out.write_text(text, encoding="utf-8")


def _chosen(names: dict[str, list[str]], workers: int, limits: Limits) -> dict[str, Member | None]:
    """The member that stands for each family; None where none has a norm."""
    from normbench.engine.isolation import Lost, call_each
    from normbench.surgery.coverage import Member, choose, measure

    total = sum(map(len, names.values()))
    _tell(f"Sizes of {total} models in {len(names)} families …")
    calls = {
        tuple(models[first : first + CHUNK]): (models[first : first + CHUNK],)
        for models in names.values()
        for first in range(0, len(models), CHUNK)
    }
    measured: dict[str, Member] = {}
    for chunk, found in call_each(calls, measure, workers, limits):
        if isinstance(found, Lost):
            found = [Member(name, None, 0, found.reason) for name in chunk]
        measured |= {member.name: member for member in found}
        if len(measured) // 200 > (len(measured) - len(chunk)) // 200:
            _tell(f"  {len(measured)} of {total}")
    return {family: choose([measured[n] for n in models]) for family, models in names.items()}


def _rows(
    chosen: dict[str, Member | None], workers: int, limits: Limits, train: bool
) -> Iterator[Coverage]:
    from normbench.engine.isolation import Lost, call_each
    from normbench.surgery.coverage import Coverage, probe

    yield from (Coverage(family) for family, member in chosen.items() if member is None)
    calls = {
        family: (family, member, train) for family, member in chosen.items() if member is not None
    }
    for number, (family, row) in enumerate(call_each(calls, probe, workers, limits), 1):
        if isinstance(row, Lost):
            _, member, _ = calls[family]
            row = Coverage(family, member.name, member.parameters, member.norms, problem=row.reason)
        problem = f": {row.reason}" if row.reason else ""
        _tell(f"[{number}/{len(calls)}] {family}: {row.model} {row.status}{problem}")
        yield row


def _tell(line: str) -> None:
    typer.echo(line, err=True)
