"""The store's frame as typed rows: JSON columns decoded, non-finite metrics left out."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl

from normbench.cells import Cell, digest, settings

_COLUMNS = (
    "record_id", "suite", "task", "method", "variant", "params", "model", "dataset", "batch_size",
    "seed", "precision", "status", "reason", "hardware_class", "code_hash", "protocol",
    "submitter", "started_at", "wall_seconds", "metrics", "cell", "environment",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """One record, as far as pages show it. The fields mean what they mean in `Record`.

    Attributes:
        setting: short digest of what else must agree before two cells may be compared: model and
            data set arguments and the training configuration.
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
    setting: str

    @property
    def board_key(self) -> tuple[Any, ...]:
        """What rows of one board share."""
        return (
            self.suite, self.task, self.model, self.dataset, self.hardware_class, self.protocol,
            self.precision, self.setting,
        )  # fmt: skip


def read_rows(frame: pl.DataFrame) -> Iterator[Row]:
    """The frame's rows, oldest first."""
    # Cells and environments repeat from row to row: decode each distinct text once.
    decoded: dict[str, Any] = {}

    def decode(text: str) -> Any:
        if text not in decoded:
            decoded[text] = json.loads(text)
        return decoded[text]

    for raw in frame.select(_COLUMNS).sort("started_at", "record_id").iter_rows(named=True):
        cell = decode(raw["cell"])
        same = [cell["model_args"], settings(Cell.from_json(cell))]
        values = {name: raw[name] for name in _COLUMNS}
        values |= {
            "params": decode(raw["params"]),
            "metrics": _finite(raw["metrics"]),
            "cell": cell,
            "environment": decode(raw["environment"]),
            "setting": digest(same)[:8],
        }
        yield Row(**values)


def _finite(metrics: list[dict[str, Any]]) -> dict[str, float]:
    numbers = {item["name"]: item["value"] for item in metrics}
    return {k: float(v) for k, v in numbers.items() if v is not None and math.isfinite(v)}
