"""The committed grid that GPU machines read is the suite's."""

from __future__ import annotations

import json
from pathlib import Path

from normbench.suites import expand, load_suite

ROOT = Path(__file__).resolve().parent.parent


def test_the_cells_for_gpu_machines_are_fresh() -> None:
    committed = (ROOT / "suites/cells/small-batch.cells.jsonl").read_text("utf-8").splitlines()
    fresh = [cell.to_json() for cell in expand(load_suite(ROOT / "suites/small-batch.yaml"))]
    assert [json.loads(line) for line in committed] == json.loads(json.dumps(fresh)), (
        "stale: make gpu-cells"
    )
