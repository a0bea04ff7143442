"""The committed grid that GPU machines read is the suite's."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from normbench.suites import expand, load_suite

ROOT = Path(__file__).resolve().parent.parent
SUITES = ("small-batch", "throughput-cuda", "throughput-cuda-sweep", "memory-cuda")


@pytest.mark.parametrize("name", SUITES)
def test_the_cells_for_gpu_machines_are_fresh(name: str) -> None:
    packed = (ROOT / f"suites/cells/{name}.cells.jsonl.gz").read_bytes()
    committed = gzip.decompress(packed).decode().splitlines()
    fresh = [cell.to_json() for cell in expand(load_suite(ROOT / f"suites/{name}.yaml"))]
    assert [json.loads(line) for line in committed] == json.loads(json.dumps(fresh)), (
        "stale: make gpu-cells"
    )


def test_no_other_cells_are_committed() -> None:
    found = {path.name for path in (ROOT / "suites/cells").iterdir()}
    assert found == {f"{name}.cells.jsonl.gz" for name in SUITES}
