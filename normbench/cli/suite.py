"""`normbench suite`: check a suite file, list its cells, export the schema for editors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

SuiteFile = Annotated[Path, typer.Argument(metavar="FILE", help="Suite YAML.")]
Out = Annotated[Path | None, typer.Option("--out", help="Write here instead of printing.")]

suite_app = typer.Typer(
    help="Check suite files and look inside them.", no_args_is_help=True, rich_markup_mode=None
)


def register(app: typer.Typer) -> None:
    """Add the command group to the application."""
    app.add_typer(suite_app, name="suite")


@suite_app.command()
def check(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Suite YAML files.")],
) -> None:
    """Check suite files: every mistake with its line. Exit code 2 if there is one."""
    from normbench.suites import SuiteError, expand, load_suite

    failed = False
    for path in files:
        try:
            suite = load_suite(path)
        except SuiteError as error:
            failed = True
            for problem in error.problems:
                typer.echo(problem.at(error.path), err=True)
        else:
            typer.echo(f"{path}: ok, {len(expand(suite))} cells")
    if failed:
        raise typer.Exit(2)


@suite_app.command()
def cells(file: SuiteFile, out: Out = None) -> None:
    """Print the cells of a suite as JSON lines, what the lean worker reads; NAME.gz is packed."""
    from normbench.cells import canonical_json
    from normbench.suites import expand, load_suite

    lines = [canonical_json(cell.to_json()) + "\n" for cell in expand(load_suite(file))]
    _print("".join(lines), out)


@suite_app.command()
def schema(out: Out = None) -> None:
    """Print the JSON Schema of suite files, for editors."""
    from normbench.suites import json_schema

    _print(json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n", out)


def _print(text: str, out: Path | None) -> None:
    if out is None:
        typer.echo(text, nl=False)
    elif out.suffix == ".gz":
        import gzip

        out.write_bytes(gzip.compress(text.encode(), mtime=0))  # the same text, the same file
    else:
        out.write_text(text, encoding="utf-8")
