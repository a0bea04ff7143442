"""The catalogue as a Markdown page, docs/catalogue.md: `normbench methods --markdown`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from normbench.cli.plain_math import plain

HEAD = """\
# The catalogue

Made by `normbench methods --markdown`; a test keeps it fresh. Equations, parameters with their
bounds and BibTeX: `normbench methods NAME`, or the method's page on the site. What can be measured
of a method (batch dependence, what it saves for backward …) is not declared here but measured.
"""

EDGES = """
## At the edges of definition

One training step of each layer with default parameters, tried when this page was made. ✓: output
and gradient are finite and depend on the input; refuses: a `ValueError` that says why, before
anything is computed; constant: no input changes the output.
"""


def markdown(entries: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Lines of the page: a section per family, in it one per method, and what happens at the edges.

    Args:
        entries: of `MethodInfo.to_json`.
    """
    ordered = sorted(entries, key=lambda entry: (entry["family"], entry["name"]))
    yield HEAD
    yield f"{len(ordered)} methods."
    family = None
    for entry in ordered:
        if entry["family"] != family:
            family = entry["family"]
            yield f"\n## Family {family}"
        yield from _section(entry)
    yield EDGES
    yield from _edges([entry["name"] for entry in ordered])


def _edges(methods: Iterable[str]) -> Iterator[str]:
    from normbench.capabilities.edge_cases import EDGE_CASES, behaviour

    yield f"| method | {' | '.join(case.heading for case in EDGE_CASES)} |"
    yield f"|---|{'---|' * len(EDGE_CASES)}"
    sizes = ("×".join(map(str, case.shape)) for case in EDGE_CASES)
    yield f"| input | {' | '.join(sizes)} |"
    for method in sorted(methods):
        found = (behaviour(method, case) for case in EDGE_CASES)
        words = ("✓" if word == "works" else word for word in found)
        yield f"| `{method}` | {' | '.join(words)} |"


def _section(entry: Mapping[str, Any]) -> Iterator[str]:
    yield f"\n### `{entry['name']}`: {entry['title']}\n"
    yield entry["summary"]
    yield "\n```text"
    yield plain(entry["equation"])
    yield "```\n"
    yield f"- Parameters: {', '.join(map(_parameter, entry['parameters'])) or 'none'}."
    traits = {
        "consumes_activation": "owns the activation that follows the slot",
        "fuses_residual": "adds the shortcut of a residual block as well",
        "weight_side": "changes the weights of convolutions",
        "model_side": "changes the model beyond its slots",
    }
    if found := [text for key, text in traits.items() if entry[key]]:
        yield f"- Also: {'; '.join(found)}."
    yield f"- Where it is undefined: {entry['policy']}"
    if cite := entry["citation"]:
        where = f"arXiv:{cite['arxiv']}" if cite["arxiv"] else cite["venue"]
        first = cite["authors"][0].partition(",")[0]
        more = " et al." if len(cite["authors"]) > 1 else ""
        yield f"- Source: {first}{more}, {cite['title']}, {cite['year']}, {where}."


def _parameter(parameter: Mapping[str, Any]) -> str:
    default = parameter["default"]
    inherited = default is None and parameter["name"] in ("eps", "affine")
    return f"`{parameter['name']}` {'the slot’s' if inherited else default}"
