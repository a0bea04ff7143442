"""What methods can do, from records of task `capability`: one row of answers per method."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from normbench.leaderboard.catalogue import Probe
from normbench.stats import significant

ALONE = "_without_activation"
"""Ends the name of an entry that was measured on the layer without an activation."""


@dataclass(frozen=True, slots=True)
class Answered:
    """One entry of a method's row.

    Attributes:
        shown: yes, no, a number with its unit, or one word for what kept it from being one.
        reason: why, where the record says.
    """

    heading: str
    description: str
    shown: str
    reason: str


@dataclass(frozen=True, slots=True)
class Examined:
    """A method's row: the latest examination of it with default parameters.

    Attributes:
        answers: by theme, in the probes' order.
        code_hash: of the code that was examined.
    """

    answers: Mapping[str, tuple[Answered, ...]]
    hardware_class: str
    date: str
    code_hash: str


def examined(frame: pl.DataFrame, probes: Sequence[Probe]) -> dict[str, Examined]:
    """By method; methods without such a record are not in it.

    Args:
        frame: what `normbench.store.Store.read` returns.
        probes: of the catalogue; entries of other names are left out.
    """
    rows = frame.filter(
        (pl.col("task") == "capability")
        & (pl.col("status") == "ok")
        & (pl.col("variant") == pl.col("method"))
    )
    # A full examination counts before one that left the slow probes out.
    latest = sorted(rows.iter_rows(named=True), key=lambda row: (not _fast(row), row["started_at"]))
    return {
        row["method"]: Examined(
            _answers(json.loads(row["slots"]).get("probes", {}), probes),
            row["hardware_class"], row["started_at"][:10], row["code_hash"],
        )
        for row in latest
    }  # fmt: skip


def _fast(row: Mapping[str, Any]) -> bool:
    return bool(json.loads(row["cell"])["config"].get("fast"))


def _answers(
    entries: Mapping[str, Mapping[str, Any]], probes: Sequence[Probe]
) -> dict[str, tuple[Answered, ...]]:
    found: dict[str, list[Answered]] = {}
    for probe in probes:
        for suffix, mark in (("", ""), (ALONE, ", without activation")):
            entry = entries.get(probe.name + suffix)
            if entry is not None:
                answer = Answered(
                    probe.heading + mark, probe.description, _shown(entry, probe.unit),
                    str(entry["reason"]),
                )  # fmt: skip
                found.setdefault(probe.theme, []).append(answer)
    return {theme: tuple(answers) for theme, answers in found.items()}


def _shown(entry: Mapping[str, Any], unit: str) -> str:
    value = entry["value"]
    if value is None:
        return str(entry["reason"]).partition(":")[0]
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{'0' if value == 0 else significant(value)} {unit}".rstrip()
