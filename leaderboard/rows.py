"""The store's frame as typed rows: JSON columns decoded, non-finite metrics left out."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from normbench.cells import Cell, data_key, digest, settings

_COLUMNS = (
    "record_id", "suite", "task", "method", "variant", "params", "model", "dataset", "batch_size",
    "seed", "precision", "status", "reason", "hardware_class", "code_hash", "protocol",
    "submitter", "started_at", "wall_seconds", "metrics", "cell", "environment",
    "data_fingerprint", "fallback",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """One record, as far as pages show it. The fields mean what they mean in `Record`.

    Attributes:
        data_fingerprint: of a cell that ended before it had read its data, that of the latest
            record that asked for the same.
        setting: short digest of what else must agree before two cells may be compared: model and
            data set arguments, the data themselves and the training configuration.
    """

    record_id: str
    suite: str
    task: str
    method: str
    variant: str
    params: Mapping[str, Any]
    model: str
    dataset: str
    batch_size: int
    seed: int
    precision: str
    status: str
    reason: str
    hardware_class: str
    code_hash: str
    protocol: int
    submitter: str
    started_at: str
    wall_seconds: float
    metrics: Mapping[str, float]
    cell: Mapping[str, Any]
    environment: Mapping[str, Any]
    data_fingerprint: str
    fallback: str
    setting: str

    @property
    def board_key(self) -> tuple[Any, ...]:
        """What rows of one board share."""
        return (
            self.suite, self.task, self.model, self.dataset, self.hardware_class, self.protocol,
            self.precision, self.setting,
        )  # fmt: skip


def read_rows(frame: pl.DataFrame) -> Iterator[Row]:
    """The frame's rows, oldest first. Rows of one cell share one `cell` object."""
    # Cells and environments repeat from row to row: decode each distinct text once.
    decode = functools.cache(json.loads)

    @functools.cache
    def parsed(text: str) -> tuple[Any, str, list[Any]]:
        value = decode(text)
        cell = Cell.from_json(value)
        return value, data_key(cell), [value["model_args"], settings(cell)]

    raws = list(frame.select(_COLUMNS).sort("started_at", "record_id").iter_rows(named=True))
    known = {parsed(r["cell"])[1]: r["data_fingerprint"] for r in raws if r["data_fingerprint"]}
    for raw in raws:
        cell, samples, same = parsed(raw["cell"])
        fingerprint = raw["data_fingerprint"] or known.get(samples, "")
        values = {name: raw[name] for name in _COLUMNS}
        values |= {
            "params": decode(raw["params"]),
            "metrics": _finite(raw["metrics"]),
            "cell": cell,
            "environment": decode(raw["environment"]),
            "data_fingerprint": fingerprint,
            "setting": digest([*same, fingerprint])[:8],
        }
        yield Row(**values)


def of_latest_data(rows: Iterable[Row]) -> list[Row]:
    """The rows without those whose cell was measured again, later, on other data.

    Args:
        rows: as `read_rows` gives them, oldest first.
    """
    kept = list(rows)
    latest = {_work(row): row.data_fingerprint for row in kept}
    return [row for row in kept if row.data_fingerprint == latest[_work(row)]]


def _work(row: Row) -> tuple[int, str, int]:
    return id(row.cell), row.hardware_class, row.protocol


def _finite(metrics: list[dict[str, Any]]) -> dict[str, float]:
    numbers = {item["name"]: item["value"] for item in metrics}
    return {k: float(v) for k, v in numbers.items() if v is not None and math.isfinite(v)}
