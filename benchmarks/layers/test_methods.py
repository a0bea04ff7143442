"""Every method of the catalogue, forward + backward, as a ratio to nn.BatchNorm2d in the same run.

Rounds are interleaved; methods that own their activation are compared with batch norm and ReLU.

    pytest benchmarks/layers/test_methods.py -s        # prints the table
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from interleave import interleaved, step
from torch import nn

import normbench
from normbench import registry
from normbench.registry import TrainingPlan

SHAPES = {
    "2x64x56x56": (2, 64, 56, 56),
    "32x64x56x56": (32, 64, 56, 56),
    "32x256x14x14": (32, 256, 14, 14),
}
ALL = {**SHAPES, "128x64x56x56": (128, 64, 56, 56), "128x256x14x14": (128, 256, 14, 14)}
"""With `-m slow` too."""


@pytest.fixture(scope="module")
def table() -> Iterator[dict[str, dict[str, float]]]:
    """Ratios by method and shape, printed at the end."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows: dict[str, dict[str, float]] = {}
    yield rows
    torch.set_num_threads(threads)
    shapes = [shape for shape in ALL if any(shape in row for row in rows.values())]
    print("\n| method | " + " | ".join(shapes) + " |\n|---|" + "---|" * len(shapes))
    for name, row in rows.items():
        cells = (f"{row[shape]:.2f}" if shape in row else "" for shape in shapes)
        print(f"| {name} | " + " | ".join(cells) + " |")


@pytest.mark.parametrize(
    "shape", [pytest.param(s, marks=() if s in SHAPES else pytest.mark.slow) for s in ALL]
)
@pytest.mark.parametrize("name", normbench.list_methods())
def test_ratio_to_batch_norm(
    name: str, shape: str, table: dict[str, dict[str, float]], benchmark: Callable[..., object]
) -> None:
    """Measures and reports; there is no target to fail."""
    dims, info = ALL[shape], registry.get(name)
    act = nn.ReLU() if info.consumes_activation else None
    layer = normbench.build(name, dims[1], act=act)
    if info.prepare is not None:
        info.prepare(layer, TrainingPlan(total_steps=10))
    reference: nn.Module = nn.BatchNorm2d(dims[1])
    if act is not None:
        reference = nn.Sequential(reference, nn.ReLU())
    x, gradient = torch.randn(dims, requires_grad=True), torch.randn(dims)
    own = step(layer, x, gradient)
    mine, other = interleaved(own, step(reference, x, gradient))
    table.setdefault(name, {})[shape] = mine / other
    benchmark.group = shape  # type: ignore[attr-defined]
    benchmark.extra_info["ratio"] = mine / other  # type: ignore[attr-defined]
    benchmark.pedantic(own, rounds=2, iterations=1)  # type: ignore[attr-defined]
