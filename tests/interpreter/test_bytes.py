"""What the kernels move, counted, is what docs/decisions/005-fused-kernels.md says they move.

In passes over the activation: bytes divided by those of x. Values per channel are counted too, and
are what the 5% are for.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from test_batch_norm import FIRST, LAST, LOOPED, RESIDENT, STREAMING, case, form_of
from traffic import Traffic, counted
from triton.runtime.errors import InterpreterError

from normbench.kernels.fused import batch_norm as kernels
from normbench.kernels.fused import batch_plans, proxy_cuts
from normbench.kernels.fused.group_norm import group_norm
from normbench.kernels.fused.launch import recording
from normbench.kernels.fused.launch import run as launch
from normbench.kernels.fused.tiles import view

pytestmark = pytest.mark.usefixtures("interpreter")

IDENTITY, RELU, SILU = 0, 1, 2
BITS = 1 / 16
"""A bit for each value of 16 bits."""

GEOMETRIES = {
    (STREAMING, LAST): (16, 32, 16, 16),
    (STREAMING, FIRST): (16, 4, 48, 48),
    (LOOPED, LAST): (32, 32, 8, 8),
    (LOOPED, FIRST): (4, 4, 48, 48),
    (RESIDENT, LAST): (2, 64, 14, 14),
    (RESIDENT, FIRST): (2, 8, 48, 48),
}

TRAINING = [
    # activation, residual; forward: several passes, one; backward: streaming, looped, resident
    (IDENTITY, False, (3, 2), (5, 5, 3)),
    (RELU, False, (3, 2), (5, 5, 3)),
    (SILU, False, (3, 2), (5, 5, 3)),
    (IDENTITY, True, (4, 3), (5, 5, 3)),
    (RELU, True, (4 + BITS, 3 + BITS), (6 + BITS, 6 + 2 * BITS, 4 + BITS)),
    (SILU, True, (4, 3), (7, 8, 5)),
]
EVALUATION = [
    # activation, residual; forward, backward
    (IDENTITY, False, 2, 3),
    (RELU, False, 2, 3),
    (RELU, True, 3, 5),
    (SILU, True, 3, 5),
]

COOPERATIVE = [(RELU, False, 3, 5), (RELU, True, 4 + BITS, 6 + BITS)]
"""Activation, residual; forward, backward."""

HOW = pytest.mark.parametrize(("how", "memory_format"), GEOMETRIES, ids=str)
# Small tensors are shared out all the same, and values per channel then count for more than 5%.
LARGE = pytest.mark.parametrize(
    ("how", "memory_format"), [g for g in GEOMETRIES if g[0] != RESIDENT], ids=str
)


def within_budget(traffic: Traffic, x: torch.Tensor, passes: float) -> None:
    assert passes <= traffic.passes(x) <= 1.05 * passes, traffic.table(x)


@HOW
@pytest.mark.parametrize(("act", "residual", "forward", "backward"), TRAINING)
def test_training(how, memory_format, act, residual, forward, backward) -> None:
    shape = GEOMETRIES[how, memory_format]
    layer = case(shape, memory_format, torch.bfloat16, residual, (0.0, 1.0))
    assert form_of(view(layer.x)) == how
    leaves = layer.as_type(torch.bfloat16)
    running = [torch.zeros(shape[1]), torch.ones(shape[1])]
    with counted() as read:
        y = kernels.batch_norm(*leaves, *running, 0.1, 1e-5, act)
    within_budget(read, layer.x, forward[how == RESIDENT])
    with counted() as read:
        y.backward(layer.g)
    within_budget(read, layer.x, backward[(STREAMING, LOOPED, RESIDENT).index(how)])


@pytest.mark.parametrize(
    ("how", "memory_format", "shape", "groups", "forward", "backward"),
    [
        (STREAMING, LAST, (1, 32, 40, 40), 2, 3, 5),
        (STREAMING, FIRST, (1, 32, 40, 40), 1, 3, 5),
        (RESIDENT, LAST, (4, 64, 14, 14), 2, 2, 3),
    ],
)
def test_group_norm_and_relu(how, memory_format, shape, groups, forward, backward) -> None:
    layer = case(shape, memory_format, torch.bfloat16, False, (0.0, 1.0))
    cut = proxy_cuts.resident_cut(proxy_cuts.sample_view(layer.x, groups), layer.x.device)
    assert (cut is None) == (how == STREAMING)
    x, _, *affine = layer.as_type(torch.bfloat16)
    with counted() as read:
        y = group_norm(x, *affine, groups, 1e-5, RELU)
    within_budget(read, layer.x, forward)
    with counted() as read:
        y.backward(layer.g)
    within_budget(read, layer.x, backward)


@LARGE
@pytest.mark.parametrize(("act", "residual", "forward", "backward"), EVALUATION)
def test_evaluation(how, memory_format, act, residual, forward, backward) -> None:
    shape = GEOMETRIES[how, memory_format]
    layer = case(shape, memory_format, torch.bfloat16, residual, (0.0, 1.0))
    running = [torch.zeros(shape[1]), torch.ones(shape[1])]
    with counted() as read:
        y = kernels.evaluated(*layer.as_type(torch.bfloat16), *running, 1e-5, act)
    within_budget(read, layer.x, forward)
    with counted() as read:
        y.backward(layer.g)
    within_budget(read, layer.x, backward)


@pytest.mark.parametrize("memory_format", [FIRST, LAST], ids=str)
@pytest.mark.parametrize(("act", "residual", "forward", "backward"), COOPERATIVE)
def test_cooperative(memory_format, act, residual, forward, backward, monkeypatch) -> None:
    monkeypatch.setattr(batch_plans, "COOPERATIVE", 2)
    layer = case(GEOMETRIES[STREAMING, memory_format], memory_format, torch.bfloat16, residual,
                 (0.0, 1.0))  # fmt: skip
    leaves = layer.as_type(torch.bfloat16)
    with counted() as read:
        y = kernels.batch_norm(*leaves, None, None, 0.1, 1e-5, act)
    within_budget(read, layer.x, forward)
    with counted() as back:
        y.backward(layer.g)
    within_budget(back, layer.x, backward)
    assert {kernel for traffic in (read, back) for kernel, _ in traffic.bytes} == {
        "cooperative_forward", "cooperative_backward",
    }  # fmt: skip


def test_the_geometries_are_all_ways_in_both_layouts() -> None:
    assert set(GEOMETRIES) == set(itertools.product((STREAMING, LOOPED, RESIDENT), (FIRST, LAST)))


def test_an_access_outside_of_the_arguments_is_found() -> None:
    """The count is also a check of bounds."""
    layer = case(GEOMETRIES[STREAMING, LAST], LAST, torch.float32, False, (0.0, 1.0))
    with recording() as launches, torch.no_grad():
        kernels.batch_norm(*layer.tensors(), None, None, 0.1, 1e-5)
    shorter = launches[0].arguments | {"x": layer.x[:-1]}
    with counted(), pytest.raises(InterpreterError, match="stats reads or writes outside"):
        launch(replace(launches[0], arguments=shorter))
