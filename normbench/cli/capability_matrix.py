"""How `normbench capabilities` looks: a table per theme, then the reasons; or plain data."""

from __future__ import annotations

import textwrap
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from normbench.capabilities import ALONE, THEMES, Probe
from normbench.cells import Record, fell_back
from normbench.stats import significant
from normbench.summary import EAGER, fitted, label, terminal_width, wrapped

SCHEMA = 1
"""Version of the shape of `--format json`."""

HEADING_WIDTH = 11

WITHOUT = "  without activation"
"""Label of a method's second row."""


def content(records: Sequence[Record]) -> dict[str, Any]:
    """The matrix as plain data: what the probes are, and every method's entries with reasons."""
    return {
        "schema": SCHEMA,
        "probes": [
            {
                "name": probe.name, "theme": theme, "heading": probe.heading, "unit": probe.unit,
                "description": probe.description, "details": probe.details, "slow": probe.slow,
            }
            for theme, probes in THEMES.items() for probe in probes
        ],
        "methods": [
            {
                "method": record.cell.method, "variant": record.cell.variant,
                "status": record.status, "reason": record.reason,
                "hardware_class": record.hardware_class, "record_id": record.record_id,
                "fallback": record.fallback,
                "entries": entries(record),
            }
            for record in records
        ],
    }  # fmt: skip


def entries(record: Record) -> dict[str, dict[str, Any]]:
    """Value and reason by entry name; empty for a record without answers."""
    found: dict[str, dict[str, Any]] = record.slots.get("probes", {})
    return found


def text(records: Sequence[Record], *, markdown: bool = False) -> str:
    """A table per theme, a row per method; then why there is a no or no value.

    A method that was also examined without an activation has a second row for that; one whose eager
    path was examined in place of its kernels is marked, and a line says why.
    """
    parts = []
    for theme, probes in THEMES.items():
        rows = [row for record in records for row in _rows(record, probes)]
        parts.append((_markdown if markdown else _plain)(theme, probes, rows))
    if failed := [f"{r.cell.variant}: {r.status}: {r.reason}" for r in records if not entries(r)]:
        parts.append(_list("Not examined", failed, markdown))
    if eager := fell_back((record.cell.method, record.fallback) for record in records):
        parts.append(_list(f"Measured on the eager path {EAGER}", eager, markdown))
    if reasons := list(_reasons(records)):
        parts.append(_list("Reasons", reasons, markdown))
    return "\n\n".join(parts)


def shown(entry: Mapping[str, Any] | None) -> str:
    """An entry in a table: yes, no, a number, or one word for what kept it from being one."""
    if entry is None:
        return ""
    value, reason = entry["value"], entry["reason"]
    if value is None:
        return str(reason.partition(":")[0])
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "0" if value == 0 else significant(value)


def _rows(record: Record, probes: Sequence[Probe]) -> Iterator[list[str]]:
    found = entries(record)
    yield [label(record), *(shown(found.get(probe.name)) for probe in probes)]
    alone = [found.get(probe.name + ALONE) for probe in probes]
    if any(alone):
        yield [WITHOUT, *map(shown, alone)]


def _headings(probes: Sequence[Probe]) -> list[str]:
    return [f"{p.heading} ({p.unit})" if p.unit else p.heading for p in probes]


def _plain(theme: str, probes: Sequence[Probe], rows: Sequence[Sequence[str]]) -> str:
    headings = [
        textwrap.fill(text, HEADING_WIDTH, break_long_words=False) for text in _headings(probes)
    ]
    lines = [[row[0] if row[0] == WITHOUT else wrapped(row[0]), *row[1:]] for row in rows]
    return "\n\n".join([theme, *fitted(["method", *headings], lines, terminal_width())])


def _markdown(theme: str, probes: Sequence[Probe], rows: Sequence[Sequence[str]]) -> str:
    header = ["method", *_headings(probes)]
    table = [header, ["---"] * len(header), *rows]
    lines = (" | ".join(cell.strip().replace("|", r"\|") for cell in row) for row in table)
    return "\n".join([f"## {theme}", "", *(f"| {line} |" for line in lines)])


def _list(title: str, items: Sequence[str], markdown: bool) -> str:
    if markdown:
        return "\n".join([f"## {title}", "", *(f"- {item}" for item in items)])
    return "\n".join([title, *(f"  {item}" for item in items)])


def _reasons(records: Sequence[Record]) -> Iterator[str]:
    """By probe and reason, the methods that it holds for."""
    for probe in (probe for theme in THEMES.values() for probe in theme):
        methods: dict[str, list[str]] = defaultdict(list)
        for record in records:
            for name, mark in ((probe.name, ""), (probe.name + ALONE, WITHOUT[1:])):
                entry = entries(record).get(name)
                if entry is not None and (entry["value"] is None or entry["value"] is False):
                    methods[entry["reason"]].append(record.cell.variant + mark)
        for reason, variants in methods.items():
            everyone = len(variants) == len(records) > 1
            who = "all" if everyone else ", ".join(variants)
            yield f"{probe.heading}, {who}: {reason}"
