"""Where and how records were measured, gathered from the records themselves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from normbench.leaderboard.rows import Row

MAX_VALUES = 5


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """The figures that head the site: counts, dates, hours, hardware, statuses."""
    return {
        "records": len(rows),
        "methods": len({row.method for row in rows}),
        "first": rows[0].started_at[:10],
        "last": rows[-1].started_at[:10],
        "hours": sum(row.wall_seconds for row in rows) / 3600,
        "hardware": sorted({row.hardware_class for row in rows}),
        "statuses": dict(Counter(row.status for row in rows).most_common()),
    }


@dataclass(frozen=True, slots=True)
class Eager:
    """Records that stand on no board: a method ran its eager path in place of its kernels."""

    task: str
    method: str
    reason: str
    records: int


def off_board(rows: Sequence[Row], tasks: Collection[str] = ("accuracy",)) -> list[Eager]:
    """By task, method and reason, the records of eager paths."""
    counts = Counter(
        (row.task, row.method, row.fallback) for row in rows if row.task in tasks and row.fallback
    )
    return [Eager(*left, count) for left, count in sorted(counts.items())]


def conditions(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """What was run and where, as (name, value) lines; values that differ are all given."""
    lines = [
        ("data set", _joined(row.dataset for row in rows)),
        ("data fingerprint", _joined(row.data_fingerprint or "unknown" for row in rows)),
        ("models", _joined(row.model for row in rows)),
        ("seeds", _joined(str(row.seed) for row in rows)),
        ("precision", _joined(row.precision for row in rows)),
        ("hardware class", _joined(row.hardware_class for row in rows)),
        ("submitted by", _joined(row.submitter for row in rows)),
        ("measured", _joined(row.started_at[:10] for row in rows)),
        ("protocol version", _joined(str(row.protocol) for row in rows)),
    ]
    return [*lines, *_table("training", [row.cell["config"] for row in rows]),
            *_table("environment", [row.environment for row in rows])]  # fmt: skip


def _table(prefix: str, items: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    values: dict[str, list[str]] = {}
    # Decoded JSON is shared between rows, so most items are the same object.
    for item in {id(item): item for item in items}.values():
        for key, value in _flat(item):
            values.setdefault(key, []).append(value)
    return [(f"{prefix}: {key}", _joined(found)) for key, found in values.items()]


def _flat(item: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in item.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key} ")
        elif value is not None and value != "":
            yield f"{prefix}{key}".replace("_", " "), _text(value)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _joined(values: Iterator[str] | Sequence[str]) -> str:
    distinct = list(dict.fromkeys(values))
    more = f" … and {len(distinct) - MAX_VALUES} more" if len(distinct) > MAX_VALUES else ""
    return ", ".join(distinct[:MAX_VALUES]) + more
