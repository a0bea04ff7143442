"""What is declared about methods, read from the file that `normbench methods --json` exports.

The pages get equations, citations and code hashes from here, so that a site can be built where
torch is not installed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SCHEMA = 2
DEFAULT_PATH = Path(__file__).parent / "catalogue.json"


class CatalogueError(ValueError):
    """A catalogue file that cannot be read, with the reason."""


@dataclass(frozen=True, slots=True)
class Reference:
    """Where a method comes from; `arxiv` is the bare id or empty."""

    title: str
    authors: tuple[str, ...]
    year: int
    venue: str
    arxiv: str
    bibtex: str


@dataclass(frozen=True, slots=True)
class Parameter:
    """One row of a method's parameter table."""

    name: str
    default: Any
    kind: str
    bounds: str
    choices: tuple[Any, ...]
    doc: str


@dataclass(frozen=True, slots=True)
class Method:
    """A catalogue entry, or as much as records alone tell of a method (`known` is False)."""

    name: str
    title: str
    summary: str
    family: str
    equation: str
    citation: Reference | None
    parameters: tuple[Parameter, ...]
    code_hash: str
    consumes_activation: bool
    weight_side: bool
    policy: str = ""
    known: bool = True

    @classmethod
    def unknown(cls, name: str) -> Method:
        """The entry of a method that records name and the catalogue does not have."""
        return cls(name, name, "", "", "", None, (), "", False, False, known=False)


@dataclass(frozen=True, slots=True)
class Probe:
    """A question of the capability matrix."""

    name: str
    theme: str
    heading: str
    unit: str
    description: str


Catalogue = Mapping[str, Method]


def load(path: Path | None = None) -> dict[str, Method]:
    """Methods by name. No file at the default place gives an empty catalogue.

    Args:
        path: the JSON file; the one shipped with the package by default.

    Raises:
        CatalogueError: if the file is missing (when named), is not JSON, has another schema
            version, or an entry lacks a key.
    """
    data = _read(path)
    try:
        return {entry["name"]: _method(entry) for entry in data["methods"]}
    except (KeyError, TypeError) as error:
        raise CatalogueError(f"{path}: an entry lacks {error}; export it again") from None


def load_probes(path: Path | None = None) -> tuple[Probe, ...]:
    """The questions of the capability matrix, in its order; arguments and errors as `load`."""
    data = _read(path)
    try:
        return tuple(Probe(**entry) for entry in data["probes"])
    except (KeyError, TypeError) as error:
        raise CatalogueError(f"{path}: the probes lack {error}; export it again") from None


def _read(path: Path | None) -> dict[str, Any]:
    if path is None:
        if not DEFAULT_PATH.exists():
            return {"methods": [], "probes": []}
        path = DEFAULT_PATH
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CatalogueError(f"{path}: there is no such catalogue file") from None
    except ValueError as error:
        raise CatalogueError(f"{path}: not a JSON file ({error})") from None
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema != SCHEMA:
        raise CatalogueError(f"{path}: catalogue schema is {schema!r}, expected {SCHEMA}")
    return dict(data)


def _method(entry: Mapping[str, Any]) -> Method:
    cite = entry["citation"]
    return Method(
        name=entry["name"],
        title=entry["title"],
        summary=entry["summary"],
        family=entry["family"],
        equation=entry["equation"],
        citation=None
        if cite is None
        else Reference(
            cite["title"], tuple(cite["authors"]), cite["year"], cite["venue"],
            cite["arxiv"], cite["bibtex"],
        ),
        parameters=tuple(
            Parameter(
                p["name"], p["default"], p["kind"], p["bounds"], tuple(p["choices"]), p["doc"]
            )
            for p in entry["parameters"]
        ),
        code_hash=entry["code_hash"],
        consumes_activation=entry["consumes_activation"],
        weight_side=entry["weight_side"],
        policy=entry["policy"],
    )  # fmt: skip
