"""Real cells through the engine: equal numbers wherever they run, and a clear end for bad ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import normbench
from normbench import registry
from normbench.cells import Cell, Record

SMALL: dict[str, Any] = {
    "samples": 128, "epochs": None, "min_steps": 8, "accumulate": 1, "optimizer": "sgd", "lr": 0.1,
    "lr_reference_batch": 128, "lr_scaling": "linear", "momentum": 0.9, "nesterov": False,
    "weight_decay": 5e-4, "schedule": "cosine", "warmup_fraction": 0.05, "label_smoothing": 0.0,
    "clip_grad_norm": None, "evaluations": 1, "eval_batch_size": 500, "timeout_seconds": 120,
    "tune": None,
}  # fmt: skip


def make_real_cell(method: str = "batch_norm", **fields: Any) -> Cell:
    values: dict[str, Any] = {
        "suite": "tests", "task": "accuracy", "method": method,
        "params": registry.resolve_params(method), "variant": method, "model": "nb_resnet10_1x1",
        "model_args": {}, "dataset": "embedded:digits", "dataset_args": {}, "batch_size": 16,
        "seed": 0, "precision": "fp32", "config": SMALL,
    }  # fmt: skip
    return Cell(**values | fields)


def numbers(record: Record) -> dict[str, float]:
    """All metrics that are not times."""
    assert record.status == "ok", record.reason
    return {k: v for k, v in record.metrics.items() if not k.endswith("_seconds")}


def run(out: Path, *cells: Cell, workers: int) -> dict[str, Record]:
    summary = normbench.run(cells, out=out, device="cpu", workers=workers)
    return {record.cell.method: record for record in summary.records}


def test_a_cell_gives_bitwise_equal_numbers_wherever_it_runs(tmp_path: Path) -> None:
    cells = [make_real_cell(method) for method in ("group_norm", "batch_renorm", "batch_norm")]
    first = numbers(run(tmp_path / "a", cells[-1], workers=1)["batch_norm"])
    after_others = numbers(run(tmp_path / "b", *cells, workers=1)["batch_norm"])
    in_this_process = numbers(run(tmp_path / "c", *cells, workers=0)["batch_norm"])
    assert first == after_others == in_this_process


@pytest.mark.parametrize(
    ("fields", "status", "words"),
    [
        ({"batch_size": 1}, "unsupported", "values per channel"),
        ({"batch_size": 100_000}, "error", "100000"),
        ({"dataset": "embedded:digts"}, "error", "digits"),
        ({"model": "nb_resnet10_1x2"}, "error", "nb_resnet10_1x2"),
        ({"model": "test_nfnet"}, "error", "slot"),
    ],
)
def test_a_cell_that_cannot_be_ends_with_the_reason_and_the_rest_runs(
    tmp_path: Path, fields: dict[str, Any], status: str, words: str
) -> None:
    records = run(tmp_path, make_real_cell(**fields), make_real_cell("group_norm"), workers=0)
    assert records["batch_norm"].status == status
    assert words in records["batch_norm"].reason
    assert records["group_norm"].status == "ok"
