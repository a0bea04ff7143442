"""`normbench methods`: the catalogue, or one method in full."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from normbench.cli.catalogue_page import markdown
from normbench.cli.plain_math import plain

if TYPE_CHECKING:
    from normbench.registry import MethodInfo

CATALOGUE_SCHEMA = 2
"""Version of the shape of `methods --json`, which the site reads."""


def register(app: typer.Typer) -> None:
    """Add the command to the application."""
    app.command("methods")(methods)


def methods(
    name: Annotated[str | None, typer.Argument(help="Show this method in full.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", help="Print a page, as docs/catalogue.md.")
    ] = False,
) -> None:
    """Show the catalogue of methods, or one in full."""
    from normbench.registry import get, list_methods

    infos = [get(key) for key in ([name] if name else list_methods())]
    if as_json:
        typer.echo(catalogue_json(infos), nl=False)
    elif as_markdown:
        typer.echo("\n".join(markdown(info.to_json() for info in infos)))
    elif name:
        typer.echo("\n".join(_details(infos[0].to_json(), _paths(infos).get(name, ""))))
    else:
        typer.echo("\n".join(_table([info.to_json() for info in infos], _paths(infos))))


def catalogue_json(infos: list[MethodInfo]) -> str:
    """The catalogue as the site reads it: sorted, so that equal catalogues are equal bytes."""
    from normbench.capabilities import THEMES

    entries = sorted((info.to_json() for info in infos), key=lambda entry: str(entry["name"]))
    probes = [
        {
            "name": probe.name, "theme": theme, "heading": probe.heading, "unit": probe.unit,
            "description": probe.description,
        }
        for theme, of_theme in THEMES.items() for probe in of_theme
    ]  # fmt: skip
    content = {"schema": CATALOGUE_SCHEMA, "methods": entries, "probes": probes}
    return json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _paths(infos: list[MethodInfo]) -> dict[str, str]:
    """The path that float32 takes on this machine, `eager (why)` or `kernels on cuda`, by name.

    Only for methods with kernels of their own. Asks for the device only if there is one.
    """
    import torch

    own = [info for info in infos if info.fallback is not None]
    if not own:
        return {}
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    whys = {info.name: info.why_eager(device, torch.float32) for info in own}
    return {
        name: f"eager ({why})" if why else f"kernels on {device.type}" for name, why in whys.items()
    }


def _width() -> int:
    return min(100, shutil.get_terminal_size().columns)


def _table(entries: list[dict[str, Any]], paths: dict[str, str]) -> Iterator[str]:
    rows = [("METHOD", "FAMILY", "YEAR", "WHAT IT DOES")]
    for entry in entries:
        year = str(entry["citation"]["year"]) if entry["citation"] else ""
        here = f" (here: {paths[entry['name']].split()[0]})" if entry["name"] in paths else ""
        rows.append((entry["name"], entry["family"], year, entry["title"] + here))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    for row in rows:
        start = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False))
        yield textwrap.fill(
            row[3],
            max(_width(), len(start) + 30),
            initial_indent=start + "  ",
            subsequent_indent=" " * (len(start) + 2),
        )
    yield ""
    yield "normbench methods NAME shows equation, parameters and citation."
    if paths:
        yield "here: the path that a method with kernels takes on this machine; NAME says why."


def _details(entry: dict[str, Any], path: str) -> Iterator[str]:
    yield f"{entry['name']}: {entry['title']}"
    yield _wrapped(", ".join((f"family {entry['family']}", *_traits(entry))))
    if path:
        yield _wrapped(f"Path here: {path}")
    if entry["summary"]:
        yield ""
        yield _wrapped(entry["summary"])
    yield ""
    yield "Equation"
    for line in plain(entry["equation"]).splitlines():
        yield _wrapped(line, "  ", "      ")
    yield ""
    yield "Parameters" if entry["parameters"] else "No parameters"
    for parameter in entry["parameters"]:
        yield from _parameter(parameter)
    yield ""
    yield "Where it is undefined"
    yield _wrapped(entry["policy"] or "not stated", "  ", "  ")
    if entry["citation"]:
        yield ""
        yield from _citation(entry["citation"])


def _traits(entry: dict[str, Any]) -> Iterator[str]:
    if entry["consumes_activation"]:
        yield "applies the activation that follows it"
    if entry["fuses_residual"]:
        yield "adds the shortcut of a residual block as well"
    if entry["weight_side"]:
        yield "changes the weights of convolutions"
    if entry["model_side"]:
        yield "changes the model beyond its slots"


def _parameter(parameter: dict[str, Any]) -> Iterator[str]:
    name, default = parameter["name"], parameter["default"]
    inherited = default is None and name in ("eps", "affine")
    shown = "the slot's" if inherited else "none" if default is None else default
    facts = [f"default {shown}", parameter["kind"], parameter["bounds"]]
    if parameter["choices"]:
        facts.append("one of " + ", ".join(map(str, parameter["choices"])))
    yield _wrapped(f"{name}: {', '.join(fact for fact in facts if fact)}", "  ", "      ")
    yield _wrapped(parameter["doc"], "      ", "      ")


def _citation(cite: dict[str, Any]) -> Iterator[str]:
    yield "Citation"
    yield _wrapped(f"{'; '.join(cite['authors'])}. {cite['title']}.", "  ", "  ")
    arxiv = f", arXiv {cite['arxiv']}" if cite["arxiv"] else ""
    yield _wrapped(f"{cite['venue']}, {cite['year']}{arxiv}", "  ", "  ")
    yield ""
    for line in cite["bibtex"].splitlines():
        yield _wrapped(line.strip(), "    " if line.startswith(" ") else "  ", "      ")


def _wrapped(text: str, first: str = "", rest: str = "") -> str:
    return textwrap.fill(
        text,
        _width(),
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )
