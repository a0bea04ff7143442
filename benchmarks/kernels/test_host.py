"""What a fused layer costs the host, without the launches of its kernels, beside nn.BatchNorm2d.

    pytest benchmarks/kernels/test_host.py -s    # prints the table

On a CPU, with the launches left out: planning, the operator, autograd. What Triton's launcher adds
to each launch is not in it. The native layer computes, on values too few to count.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import pytest
import torch
from torch import nn

import normbench
from normbench.kernels.fused import launch
from normbench.kernels.fused.layer import KernelLayer

ROUNDS, CALLS = 11, 100

SHAPES = {"resident": (2, 64, 7, 7), "looped": (8, 64, 56, 56), "streaming": (16, 64, 56, 56)}
TINY = (2, 64, 1, 1)

TARGET = 3.0
"""Forward and backward, ours over native. Where kernels take longer than the host, it is hidden."""


def microseconds(*functions: Callable[[], object]) -> list[float]:
    """Median time of a call of each, in turns."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(ROUNDS):
        for function, found in zip(functions, times, strict=True):
            start = time.perf_counter()
            for _ in range(CALLS):
                function()
            found.append((time.perf_counter() - start) / CALLS * 1e6)
    return [statistics.median(found[1:]) for found in times]


def step(layer: nn.Module, shape: tuple[int, ...]) -> Callable[[], object]:
    x = torch.randn(shape, requires_grad=True)
    g = torch.randn(shape)
    return lambda: torch.autograd.grad(layer(x), [x, *layer.parameters()], g)


@pytest.mark.parametrize("way", SHAPES)
def test_host(way: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.setattr(launch, "_start", lambda _: None)
    threads = torch.get_num_threads()
    request.addfinalizer(lambda: torch.set_num_threads(threads))
    torch.set_num_threads(1)
    ours = normbench.build("batch_norm_triton", 64, act=None)
    assert isinstance(ours, KernelLayer)
    ours._devices = frozenset({"cpu"})
    fused, native = microseconds(step(ours, SHAPES[way]), step(nn.BatchNorm2d(64), TINY))
    print(f"\n{way}: {fused:.0f} µs ours, {native:.0f} µs native: {fused / native:.2f}")
    assert fused / native <= TARGET
