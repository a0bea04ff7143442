"""Every method's layer against nn.BatchNorm2d, both with ReLU: times that become records.

    make bench-layers                                       # and imports the records
    pytest benchmarks/layers/test_layer_costs.py -s         # prints the table of ratios
    pytest benchmarks/layers/test_layer_costs.py -s -m slow # the large shapes

Task `layer` (normbench/tasks/layer.py) says what is timed. On CUDA these are times of the host.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from recorded import measured, ratio

import normbench
from normbench.engine.environment import resolve_device
from normbench.tasks import layer

SHAPES = {"2x64x56x56": (2, 64, 56, 56), "32x256x14x14": (32, 256, 14, 14)}
LARGE = {
    "32x64x56x56": (32, 64, 56, 56),
    "128x64x56x56": (128, 64, 56, 56),
    "128x256x14x14": (128, 256, 14, 14),
}
"""With `-m slow`."""
ALL = {**SHAPES, **LARGE}

Table = dict[str, dict[tuple[str, str], str]]


@pytest.fixture(scope="module")
def table() -> Iterator[Table]:
    """Ratios by method, shape and part, printed at the end."""
    rows: Table = {}
    yield rows
    there = [
        (s, p) for s in ALL for p in layer.CELL_PARTS if any((s, p) in r for r in rows.values())
    ]
    print("\n| method | " + " | ".join(f"{shape}, {part}" for shape, part in there) + " |")
    print("|---|" + "---|" * len(there))
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(row.get(column, "") for column in there) + " |")


@pytest.mark.parametrize("part", layer.CELL_PARTS)
@pytest.mark.parametrize(
    "shape", [pytest.param(s, marks=pytest.mark.slow if s in LARGE else ()) for s in ALL]
)
@pytest.mark.parametrize("method", normbench.list_methods())
def test_layer(method: str, shape: str, part: str, table: Table, benchmark: Any) -> None:
    """Measures and reports; there is no target to fail."""
    benchmark.group = f"{shape} {part}"
    cell = layer.cell(method, shape=ALL[shape], part=part)
    if metrics := measured(benchmark, cell, resolve_device()):
        table.setdefault(method, {})[shape, part] = ratio(metrics)
