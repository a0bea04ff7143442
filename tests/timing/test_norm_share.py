"""The share of the time that normalizations take, by the profiler."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from normbench.timing.norm_share import norm_share

CPU = torch.device("cpu")


class _Slow(torch.autograd.Function):
    """The identity, which takes so many seconds each way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, forward: float, backward: float) -> Tensor:
        ctx.backward_seconds = backward
        time.sleep(forward)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        time.sleep(ctx.backward_seconds)
        return gradients[0], None, None


class Slow(nn.Module):
    def __init__(self, forward: float, backward: float) -> None:
        super().__init__()
        self.seconds = forward, backward

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _Slow.apply(x, *self.seconds)  # type: ignore[no-untyped-call]
        return y


def work(model: nn.Module) -> Callable[[], None]:
    x = torch.randn(4, 8, requires_grad=True)
    return lambda: model(x).sum().backward()


def test_forward_and_backward_of_the_slots_count_and_nothing_else() -> None:
    norms = [Slow(0.03, 0.01), Slow(0.01, 0.05)]
    model = nn.Sequential(Slow(0.02, 0.03), norms[0], Slow(0.02, 0.03), norms[1])
    run = work(model)
    run()
    assert norm_share(model, norms, run, CPU) == pytest.approx(0.10 / 0.20, abs=0.08)
    assert norm_share(model, norms[:1], run, CPU) == pytest.approx(0.04 / 0.20, abs=0.08)
    assert norm_share(model, [], run, CPU) == 0


def test_an_op_without_gradient_at_a_slots_end_takes_nothing_from_its_neighbour() -> None:
    class Counting(Slow):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            torch.zeros(3).add_(1)  # as num_batches_tracked: it has the neighbour's number
            return y

    norm = Counting(0.02, 0.02)
    model = nn.Sequential(norm, Slow(0.02, 0.14))
    run = work(model)
    run()
    assert norm_share(model, [norm], run, CPU) == pytest.approx(0.04 / 0.20, abs=0.08)


def test_a_parametrized_weight_counts_for_the_method_that_put_it_there() -> None:
    linear = nn.Linear(8, 8)
    parametrize.register_parametrization(linear, "weight", Slow(0.05, 0.05))
    model = nn.Sequential(linear, Slow(0.05, 0.05))
    run = work(model)
    run()
    assert norm_share(model, [], run, CPU) == pytest.approx(0.5, abs=0.1)


def test_no_hook_is_left_behind() -> None:
    norm = Slow(0.0, 0.0)
    norm_share(nn.Sequential(norm), [norm], work(nn.Sequential(norm)), CPU)
    assert not norm._forward_hooks
    assert not norm._forward_pre_hooks
