"""What methods can do, from records of task `capability`: one row of answers per method."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from normbench.leaderboard.catalogue import Catalogue, Probe
from normbench.stats import significant

ALONE = "_without_activation"
"""Ends the name of an entry that was measured on the layer without an activation."""


@dataclass(frozen=True, slots=True)
class Answered:
    """One entry of a method's row.

    Attributes:
        alone: whether the layer was asked without an activation.
        value: yes, no or a number; None if something kept it from being one.
        reason: why, where the record says.
    """

    probe: Probe
    alone: bool
    value: float | None
    reason: str

    @property
    def heading(self) -> str:
        """What was asked."""
        return self.probe.heading + (", without activation" if self.alone else "")

    @property
    def kind(self) -> str:
        """`yes`, `no`, `number`, or `word` where there is no value."""
        if self.value is None:
            return "word"
        if isinstance(self.value, bool):
            return "yes" if self.value else "no"
        return "number"

    @property
    def short(self) -> str:
        """Yes, no, a number without its unit, or one word for what kept it from being one."""
        if self.value is None:
            return self.reason.partition(":")[0]
        if self.kind != "number":
            return self.kind
        return "0" if self.value == 0 else significant(self.value)

    @property
    def shown(self) -> str:
        """The same, a number with its unit."""
        return f"{self.short} {self.probe.unit}".rstrip() if self.kind == "number" else self.short


@dataclass(frozen=True, slots=True)
class Examined:
    """One examination of a method with default parameters.

    Attributes:
        answers: by the entry's name, in the probes' order.
        full: whether the slow probes were asked too.
        older: whether the method's code has changed since.
        fallback: why the eager path was examined in place of the method's kernels; empty if not.
    """

    method: str
    answers: Mapping[str, Answered]
    hardware_class: str
    protocol: int
    started_at: str
    full: bool
    older: bool
    fallback: str

    @property
    def date(self) -> str:
        """Day of the examination."""
        return self.started_at[:10]

    @property
    def by_theme(self) -> dict[str, list[Answered]]:
        """The answers under their probes' themes."""
        found: dict[str, list[Answered]] = defaultdict(list)
        for answer in self.answers.values():
            found[answer.probe.theme].append(answer)
        return dict(found)

    def answer(self, probe: Probe, *, alone: bool = False) -> Answered | None:
        """The answer to a probe; None if it was not asked (or not so)."""
        return self.answers.get(probe.name + ALONE if alone else probe.name)


@dataclass(frozen=True, slots=True)
class Matrix:
    """What may stand in one table: examinations on one hardware class by one protocol version.

    Attributes:
        rows: one per method, by name.
        themes: the probes that at least one method was asked, in the catalogue's order.
    """

    hardware_class: str
    protocol: int
    rows: tuple[Examined, ...]
    themes: Mapping[str, tuple[Probe, ...]]

    @property
    def dates(self) -> tuple[str, str]:
        """Days of the earliest and the latest examination."""
        days = sorted(row.date for row in self.rows)
        return days[0], days[-1]


def matrices(
    frame: pl.DataFrame, probes: Sequence[Probe], catalogue: Catalogue
) -> tuple[Matrix, ...]:
    """The latest protocol first, then the hardware class that examined most methods.

    Args:
        frame: what `normbench.store.Store.read` returns.
        probes: of the catalogue; entries of other names are left out.
        catalogue: methods, to tell examinations of older code.
    """
    rows = frame.filter(
        (pl.col("task") == "capability")
        & (pl.col("status") == "ok")
        & (pl.col("variant") == pl.col("method"))
    )
    groups: dict[tuple[int, str], list[Examined]] = defaultdict(list)
    for row in rows.iter_rows(named=True):
        groups[row["protocol"], row["hardware_class"]].append(_examined(row, probes, catalogue))
    made = [
        _matrix(hardware, protocol, rows, probes) for (protocol, hardware), rows in groups.items()
    ]
    return tuple(sorted(made, key=lambda m: (-m.protocol, -len(m.rows), m.hardware_class)))


def best(examinations: Iterable[Examined]) -> dict[str, Examined]:
    """By method, the examination that counts.

    The latest protocol counts before earlier ones, present code before older code, a method's
    kernels before its eager path, a full examination before one that left the slow probes out, and
    then the latest.
    """
    return {e.method: e for e in sorted(examinations, key=_weight)}


def _weight(examination: Examined) -> tuple[int, bool, bool, bool, str]:
    e = examination
    return e.protocol, not e.older, not e.fallback, e.full, e.started_at


def _matrix(
    hardware_class: str, protocol: int, rows: Iterable[Examined], probes: Sequence[Probe]
) -> Matrix:
    counted = best(rows)
    asked = {answer.probe.name for row in counted.values() for answer in row.answers.values()}
    themes: dict[str, tuple[Probe, ...]] = {}
    for probe in probes:
        if probe.name in asked:
            themes[probe.theme] = (*themes.get(probe.theme, ()), probe)
    return Matrix(
        hardware_class, protocol, tuple(counted[name] for name in sorted(counted)), themes
    )


def _examined(row: Mapping[str, Any], probes: Sequence[Probe], catalogue: Catalogue) -> Examined:
    method = catalogue.get(row["method"])
    return Examined(
        method=row["method"],
        answers=_answers(json.loads(row["slots"]).get("probes", {}), probes),
        hardware_class=row["hardware_class"],
        protocol=row["protocol"],
        started_at=row["started_at"],
        full=not json.loads(row["cell"])["config"].get("fast"),
        older=method is not None and method.code_hash != row["code_hash"],
        fallback=row["fallback"],
    )


def _answers(
    entries: Mapping[str, Mapping[str, Any]], probes: Sequence[Probe]
) -> dict[str, Answered]:
    asked = ((p, alone, p.name + ALONE * alone) for p in probes for alone in (False, True))
    return {
        name: Answered(probe, alone, entries[name]["value"], str(entries[name]["reason"]))
        for probe, alone, name in asked
        if name in entries
    }
