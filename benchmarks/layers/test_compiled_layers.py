"""Every method of the catalogue, forward + backward, as a ratio to nn.BatchNorm2d in the same run.

Rounds are interleaved; methods that own their activation are compared with batch norm and ReLU.

    pytest benchmarks/layers/test_methods.py -s -m "not slow"    # prints the table
    pytest benchmarks/layers/test_methods.py -s -m slow          # batch 128; compiled
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
COMPILED = "32x256x14x14"


@pytest.fixture(scope="module")
def table() -> Iterator[dict[str, dict[str, float]]]:
    """Ratios by method and shape, printed at the end."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows: dict[str, dict[str, float]] = {}
    yield rows
    torch.set_num_threads(threads)
    columns = [*ALL, f"{COMPILED}, compiled"]
    shapes = [shape for shape in columns if any(shape in row for row in rows.values())]
    print("\n| method | " + " | ".join(shapes) + " |\n|---|" + "---|" * len(shapes))
    for name, row in rows.items():
        cells = (f"{row[shape]:.2f}" if shape in row else "" for shape in shapes)
        print(f"| {name} | " + " | ".join(cells) + " |")


def layers(name: str, channels: int) -> tuple[nn.Module, nn.Module]:
    """The method, ready to train, and batch norm, with a ReLU where the method has one."""
    info = registry.get(name)
    act = nn.ReLU() if info.consumes_activation else None
    layer = normbench.build(name, channels, act=act)
    if info.prepare is not None:
        info.prepare(layer, TrainingPlan(total_steps=10))
    reference: nn.Module = nn.BatchNorm2d(channels)
    return layer, reference if act is None else nn.Sequential(reference, act)


@pytest.mark.parametrize(
    "shape", [pytest.param(s, marks=() if s in SHAPES else pytest.mark.slow) for s in ALL]
)
@pytest.mark.parametrize("name", normbench.list_methods())
def test_ratio_to_batch_norm(
    name: str, shape: str, table: dict[str, dict[str, float]], benchmark: Callable[..., object]
) -> None:
    """Measures and reports; there is no target to fail."""
    layer, reference = layers(name, ALL[shape][1])
    x, gradient = torch.randn(ALL[shape], requires_grad=True), torch.randn(ALL[shape])
    own = step(layer, x, gradient)
    mine, other = interleaved(own, step(reference, x, gradient))
    table.setdefault(name, {})[shape] = mine / other
    benchmark.group = shape  # type: ignore[attr-defined]
    benchmark.extra_info["ratio"] = mine / other  # type: ignore[attr-defined]
    benchmark.pedantic(own, rounds=2, iterations=1)  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize("name", normbench.list_methods())
def test_ratio_when_compiled(name: str, table: dict[str, dict[str, float]]) -> None:
    """The method compiled by inductor, batch norm as it is: what the formula costs at least."""
    torch.compiler.reset()
    layer, reference = layers(name, ALL[COMPILED][1])
    x, gradient = torch.randn(ALL[COMPILED], requires_grad=True), torch.randn(ALL[COMPILED])
    own = step(torch.compile(layer), x, gradient)
    mine, other = interleaved(own, step(reference, x, gradient))
    table.setdefault(name, {})[f"{COMPILED}, compiled"] = mine / other
