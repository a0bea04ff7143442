"""Every method's layer compiled by inductor against batch norm as it is, forward + backward.

What the formula costs at least: the passes over memory that fusing removes are gone. Rounds are
interleaved; methods that own their activation are compared with batch norm and ReLU.

    pytest benchmarks/layers/test_compiled_layers.py -s -m slow    # prints the table
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from interleave import interleaved, step
from torch import nn

import normbench
from normbench import registry
from normbench.registry import TrainingPlan

SHAPE = (32, 256, 14, 14)


@pytest.fixture(scope="module")
def table() -> Iterator[dict[str, float]]:
    """Ratios by method, printed at the end."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rows: dict[str, float] = {}
    yield rows
    torch.set_num_threads(threads)
    print(f"\n| method | {'x'.join(map(str, SHAPE))}, compiled |\n|---|---|")
    for name, ratio in rows.items():
        print(f"| {name} | {ratio:.2f} |")


def layers(name: str, channels: int) -> tuple[nn.Module, nn.Module]:
    """The method, ready to train, and batch norm, with a ReLU where the method has one."""
    info = registry.get(name)
    act = nn.ReLU() if info.consumes_activation else None
    layer = normbench.build(name, channels, act=act)
    if info.prepare is not None:
        info.prepare(layer, TrainingPlan(total_steps=10))
    reference: nn.Module = nn.BatchNorm2d(channels)
    return layer, reference if act is None else nn.Sequential(reference, act)


@pytest.mark.slow
@pytest.mark.parametrize("name", normbench.list_methods())
def test_ratio_when_compiled(name: str, table: dict[str, float]) -> None:
    """Measures and reports; there is no target to fail."""
    torch.compiler.reset()
    layer, reference = layers(name, SHAPE[1])
    x, gradient = torch.randn(SHAPE, requires_grad=True), torch.randn(SHAPE)
    own = step(torch.compile(layer), x, gradient)
    mine, other = interleaved(own, step(reference, x, gradient))
    table[name] = mine / other
