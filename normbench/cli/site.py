"""`normbench site`: build the leaderboard from records, look at it, draw it for a document."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

LOOPBACK = "127.0.0.1"

_site = typer.Typer(no_args_is_help=True, rich_markup_mode=None)

_Results = Annotated[
    list[Path] | None,
    typer.Option(
        "--results", help="Folder of records; may be given several times. [default: results/]"
    ),
]
_Suites = Annotated[
    Path, typer.Option("--suites", help="Folder of suite files, to quote their questions.")
]


def register(app: typer.Typer) -> None:
    """Add the `site` commands to the command line."""
    app.add_typer(_site, name="site", help="Build the leaderboard from records and look at it.")


@_site.command()
def build(
    results: _Results = None,
    out: Annotated[Path, typer.Option("--out", help="Folder of the site.")] = Path("site"),
    catalogue: Annotated[
        Path | None,
        typer.Option(
            "--catalogue",
            help="File of `normbench methods --json`. [default: the package's]",
        ),
    ] = None,
    suites: _Suites = Path("suites"),
) -> None:
    """Build the site; without --results from results/, or else from the package's own records."""
    from normbench.leaderboard import publish, site

    try:
        built = site.build(_folders(results), out, catalogue=catalogue, suites=suites)
    except publish.NoRecordsError as error:
        typer.echo(f"Error: {error}", err=True)
        raise typer.Exit(1) from None
    for problem in built.problems:
        typer.echo(f"Warning: {problem}", err=True)
    counts = [f"{built.boards} boards of accuracy"]
    counts += [f"{built.costs} of speed and memory"] if built.costs else []
    counts += [f"{built.tradeoffs} charts of one against the other"] if built.tradeoffs else []
    typer.echo(f"Built {', '.join(counts)} from {built.records} records.")
    if built.eager:
        typer.echo(f"On no board, as measured on an eager path: {built.eager} records.")
    typer.echo(f"Open {built.index.as_uri()}")


@_site.command()
def picture(
    results: _Results = None,
    out: Annotated[Path, typer.Option("--out", help="SVG file to write.")] = Path("accuracy.svg"),
    suite: Annotated[
        str, typer.Option("--suite", help="Suite to draw, where the records are of several.")
    ] = "",
    suites: _Suites = Path("suites"),
) -> None:
    """Draw a suite's accuracy against batch size as one SVG file."""
    from normbench.leaderboard import site

    text = site.picture(_folders(results), suite, suites)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    typer.echo(f"Wrote {out}")


@_site.command()
def serve(
    folder: Annotated[Path, typer.Argument(help="A site that `site build` wrote.")] = Path("site"),
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="0 takes any free port.")
    ] = 8000,
) -> None:
    """Serve the site to this machine only, until Ctrl-C. Opening its index.html does as well."""
    from normbench.leaderboard import serving

    with serving.server(folder, LOOPBACK, port) as server:
        typer.echo(f"Serving {folder} at http://{LOOPBACK}:{server.server_port}/ (Ctrl-C stops)")
        server.serve_forever()


def _folders(results: list[Path] | None) -> list[Path]:
    if results:
        return results
    from normbench.leaderboard import sources

    return sources.default_results()
