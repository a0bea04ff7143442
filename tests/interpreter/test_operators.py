"""The operators as torch sees them: schemas, fakes, compilation, autocast, and what is launched."""

from __future__ import annotations

import pytest
import torch
from test_batch_norm import FIRST, LAST, case
from torch import Tensor
from torch.library import opcheck

from normbench.kernels.fused import batch_launches
from normbench.kernels.fused import batch_norm as kernels
from normbench.kernels.fused import batch_operators as operators
from normbench.kernels.fused.launch import Launch, recording

EPS, RELU, SILU = 1e-5, 1, 2
FORMATS = pytest.mark.parametrize("memory_format", [FIRST, LAST], ids=str)


def arguments(memory_format: torch.memory_format, renorm: bool) -> list[object]:
    layer = case((3, 8, 5, 5), memory_format, torch.float32, True, (0.0, 1.0))
    running = [torch.zeros(8), torch.ones(8)]
    counters = [torch.tensor(n) for n in (7, 2, 3)] if renorm else [None] * 3
    limits = [3.0, 5.0, 0.0, 10.0, 10.0] if renorm else []
    return [*layer.tensors(), *running, *counters, limits, 0.1, EPS]


@FORMATS
@pytest.mark.parametrize("renorm", [False, True])
@pytest.mark.parametrize("act", [0, RELU, SILU])
def test_forward_and_backward_pass_opcheck(memory_format, renorm, act) -> None:
    given = arguments(memory_format, renorm)
    opcheck(operators.forward, (*given, act, True))
    _, saved, bits = operators.forward(*given, act, True)
    residual = given[1] if act == SILU else None
    g = torch.randn_like(given[0])
    opcheck(operators.backward, (g, given[0], saved, residual, bits, act, True, True, False))
    opcheck(operators.backward, (g, given[0], saved, None, bits[:0], act, False, True, True))
    opcheck(operators.backward, (g, given[0], saved, None, bits[:0], act, False, False, True))


@FORMATS
def test_evaluation_passes_opcheck(memory_format) -> None:
    given = arguments(memory_format, renorm=False)[:6]
    opcheck(operators.evaluate, (*given, EPS, RELU, True))
    opcheck(operators.evaluate, (given[0], None, None, None, *given[4:], EPS, 0, False))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_whole_and_bit_for_bit(backend: str) -> None:
    def step(x: Tensor, residual: Tensor, w: Tensor, b: Tensor, *running: Tensor) -> Tensor:
        return kernels.batch_norm(x * 2, residual, w, b, *running, 0.1, EPS, RELU).square()

    found = []
    for function in (step, torch.compile(step, fullgraph=True, backend=backend)):
        layer = case((3, 8, 5, 5), LAST, torch.float32, True, (0.0, 1.0))
        leaves, running = layer.as_type(torch.float32), [torch.zeros(8), torch.ones(8)]
        y = function(*leaves, *running)
        y.sum().backward()
        found.append([y.detach(), *(t.grad for t in leaves), *running])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_second_derivative_is_refused() -> None:
    x = torch.randn(4, 3, 5, 5, requires_grad=True)
    y = kernels.batch_norm(x, None, None, None, None, None, 0.1, EPS)
    (g,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        g.sum().backward()


def names(launches: list[Launch]) -> list[str]:
    return [launch.kernel.__name__ for launch in launches]


def launched(shape, memory_format, act, residual) -> tuple[list[str], list[str]]:
    """Names of the kernels of forward and backward, on tensors without data."""
    layer = case(shape, memory_format, torch.bfloat16, residual, (0.0, 1.0))
    x, other, w, b = (None if t is None else t.to("meta") for t in layer.tensors())
    with recording() as forward:
        _, saved, bits = batch_launches.forward(
            x, other, w, b, w, w, 0.1, EPS, act, True, None, None
        )  # fmt: skip
    with recording() as backward:
        kept = other if act == SILU else None
        batch_launches.backward(
            layer.g.to("meta"), x, saved, kept, bits, act, residual, True, False
        )
    return names(forward), names(backward)


@FORMATS
@pytest.mark.parametrize("residual", [True, False])
def test_how_many_launches(memory_format, residual) -> None:
    assert launched((2, 64, 7, 7), memory_format, RELU, residual) == (
        ["resident_forward"],
        ["resident_backward"],
    )
    assert launched((8, 64, 112, 112), memory_format, RELU, residual) == (
        ["stats", "settle", "apply"],
        ["backward_stats", "backward_settle", "backward_apply"],
    )


@pytest.mark.parametrize(("frozen", "launched"), [
    (True, ["backward_stats"]), (False, ["backward_stats", "backward_settle"]),
])  # fmt: skip
def test_evaluation_takes_one_pass_back(frozen, launched) -> None:
    layer = case((16, 32, 16, 16), LAST, torch.float32, False, (0.0, 1.0))
    x, _, w, b = layer.as_type(torch.float32)
    w.requires_grad_(not frozen)
    b.requires_grad_(not frozen)
    y = kernels.evaluated(x, None, w, b, torch.zeros(32), torch.ones(32), EPS, RELU)
    with recording() as launches:
        y.backward(layer.g)
    assert names(launches) == launched
    assert (w.grad is None) == (b.grad is None) == frozen


def test_a_gradient_that_nobody_needs_is_not_computed() -> None:
    layer = case((3, 8, 5, 5), FIRST, torch.float32, True, (0.0, 1.0))
    x, residual, w, b = layer.as_type(torch.float32)
    y = kernels.batch_norm(x, residual.detach(), w.detach(), b, None, None, 0.1, EPS, RELU)
    y.backward(layer.g)
    assert w.grad is None
    assert residual.grad is None
    again = kernels.batch_norm(x, residual, w, b, None, None, 0.1, EPS, RELU)
    both = torch.autograd.grad(again, (x, b), layer.g)
    assert torch.equal(both[0], x.grad)
    assert torch.equal(both[1], b.grad)


@FORMATS
@pytest.mark.parametrize("shape", [(3, 80, 5, 5), (10, 160, 16, 16)], ids=str)
def test_one_program_counts_the_step(memory_format, shape) -> None:
    layer = case(shape, memory_format, torch.float32, False, (0.0, 1.0))
    counted = torch.tensor(6)
    with recording() as launches:
        for _ in range(2):
            kernels.batch_norm(*layer.tensors(), None, None, 0.1, EPS, RELU, counted)
    assert counted == 8
    counting = [launch for launch in launches if launch.arguments.get("step") is not None]
    assert len(counting) == 2
    assert all(launch.grid[0] > 1 for launch in counting)


def test_autograd_is_told_that_running_values_moved() -> None:
    running = [torch.zeros(8), torch.ones(8)]
    w = torch.ones(8, requires_grad=True)
    kept = w * running[0]
    kernels.batch_norm(torch.randn(3, 8, 5, 5), None, None, None, *running, 0.1, EPS)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kept.sum().backward()
    with torch.inference_mode():  # such tensors have no version
        inside = [torch.zeros(8), torch.ones(8)]
        kernels.batch_norm(torch.randn(3, 8, 5, 5), None, None, None, *inside, 0.1, EPS)


@pytest.mark.parametrize(("act", "residual", "kept"), [
    (RELU, False, 0.0), (SILU, False, 0.0), (RELU, True, 1 / 16), (SILU, True, 1.0), (0, True, 0.0),
])  # fmt: skip
def test_what_is_saved_for_the_backward(act, residual, kept) -> None:
    """x, and only with a residual more: a bit an element for ReLU, the residual for others."""
    layer = case((8, 32, 16, 16), LAST, torch.bfloat16, residual, (0.0, 1.0))
    leaves = layer.as_type(torch.bfloat16)
    sizes: dict[int, int] = {}
    note = lambda t: sizes.update({t.untyped_storage().data_ptr(): t.numel() * t.itemsize}) or t  # noqa: E731
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        kernels.batch_norm(*leaves, None, None, 0.1, EPS, act)
    size = layer.x.numel() * 2
    assert sum(sizes.values()) == pytest.approx(size * (1 + kept), rel=0.05)
