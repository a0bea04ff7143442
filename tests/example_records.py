"""Records as a run would leave them, without running anything."""

from __future__ import annotations

import dataclasses
from typing import Any

from normbench.cells import Cell, Record, Status, cell_id, record_id

ENVIRONMENT = {"git": {"sha": "0123abc", "dirty": False}, "packages": {"torch": "2.15.0"}}


def make_record(
    accuracy: float | None = 0.948,
    *,
    status: Status = "ok",
    reason: str = "",
    started_at: str = "2026-01-01T00:00:00+00:00",
    hardware_class: str = "cpu-1-thread",
    code_hash: str = "c0de",
    data_fingerprint: str = "da7a",
    fallback: str = "",
    metrics: dict[str, float] | None = None,
    **cell_fields: Any,
) -> Record:
    """A finished cell of the small-batch suite; `cell_fields` replace fields of its cell."""
    cell = dataclasses.replace(_CELL, **cell_fields)
    if "variant" not in cell_fields:
        cell = dataclasses.replace(cell, variant=cell.method)
    work = cell_id(cell, code_hash, 1)
    return Record(
        record_id=record_id(work, hardware_class, ENVIRONMENT, "someone"),
        cell_id=work,
        cell=cell,
        code_hash=code_hash,
        protocol=1,
        status=status,
        reason=reason,
        metrics=_metrics(accuracy) if metrics is None else metrics,
        curve=({"step": 100, "train_loss": 0.5}, {"step": 300, "train_loss": 0.25}),
        trials=(),
        samples=(),
        slots={"found": 12, "replaced": 12},
        environment=ENVIRONMENT,
        hardware_class=hardware_class,
        submitter="someone",
        started_at=started_at,
        wall_seconds=6.5,
        notes=("32 groups became 16 at 1 slot",),
        data_fingerprint=data_fingerprint,
        fallback=fallback,
    )


def make_timed(ratio: float = 1.234, half: float | None = 0.04, **cell_fields: Any) -> Record:
    """A record of task `throughput`; its own interval is lopsided, or there is none."""
    metrics = {"ratio": ratio, "seconds": 0.5}
    if half is not None:
        metrics |= {"ratio_low": ratio - half, "ratio_high": ratio + 2 * half}
    cell = {
        "task": "throughput", "dataset": "none", "model": "resnet18",
        "config": {"mode": "train", "layout": "nchw"}, **cell_fields,
    }  # fmt: skip
    return make_record(metrics=metrics, data_fingerprint="", **cell)


def _metrics(accuracy: float | None) -> dict[str, float]:
    return {} if accuracy is None else {"test_accuracy": accuracy, "test_loss": 0.25}


_CELL = Cell(
    suite="small-batch",
    task="accuracy",
    method="batch_norm",
    params={"eps": 1e-5},
    variant="batch_norm",
    model="nb_resnet10_1x1",
    model_args={},
    dataset="embedded:mnist",
    dataset_args={},
    batch_size=2,
    seed=0,
    precision="fp32",
    config={"samples": 6000, "lr": 0.1},
)
