"""Gradients, precision, determinism, and what training leaves behind."""

from __future__ import annotations

import math

import pytest
import torch
from oracles.formulas import ORACLES
from torch import nn
from torch.func import functional_call


def state_of(layer):
    return {k: v.clone() for k, v in [*layer.named_parameters(), *layer.named_buffers()]}


def test_gradients_are_those_of_the_forward_by_finite_differences(case):
    if not ORACLES[case.name].exact_gradient:
        pytest.skip(f"{case.name}: the paper's backward is not the forward's; see its oracle")
    layer = case.build(4).double()
    names = [name for name, _ in layer.named_parameters()]
    values = [p.detach() + 0.1 * torch.randn_like(p) for p in layer.parameters()]
    buffers = dict(layer.named_buffers())

    def forward(x, *parameters):
        # every evaluation starts from the same state, on copies
        fresh = {name: buffer.clone() for name, buffer in buffers.items()}
        given = dict(zip(names, parameters, strict=True))
        return functional_call(layer, given | fresh, (x,))

    x = torch.randn(3, 4, 2, 2, dtype=torch.float64)
    inputs = [value.requires_grad_() for value in (x, *values)]
    assert torch.autograd.gradcheck(forward, inputs)


def test_a_gradient_with_stride_zero_is_the_same_as_a_dense_one(case, device):
    x = torch.randn(4, 16, 5, 5, device=device)
    expanded, dense = x.clone().requires_grad_(), x.clone().requires_grad_()
    case.build(device=device)(expanded).sum().backward()  # sum's gradient is an expanded scalar
    case.build(device=device)(dense).backward(torch.ones_like(x))
    torch.testing.assert_close(expanded.grad, dense.grad)


def test_autocast_stays_finite_and_in_its_own_type(case, device):
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), case.build()).to(device)
    for _ in range(3):
        with torch.autocast(device, dtype=torch.bfloat16):
            y = model(torch.randn(4, 3, 8, 8, device=device) * 100)
        assert y.dtype == torch.bfloat16
        y.float().square().mean().backward()
    assert torch.isfinite(y).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_the_same_input_and_state_give_the_same_bits(case):
    results = []
    for _ in range(2):
        torch.manual_seed(1)
        layer, x = case.build(), torch.randn(4, 16, 5, 5, requires_grad=True)
        y = layer(x)
        y.square().sum().backward()
        results.append((y.detach(), x.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_no_random_numbers_are_drawn(case):
    before = torch.get_rng_state()
    layer = case.build()
    layer(torch.ones(2, 16, 3, 3) * torch.arange(3.0))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_input_is_left_as_it_was(case, device):
    x = torch.randn(4, 16, 5, 5, device=device)
    before = x.clone()
    case.build(device=device)(x)
    assert torch.equal(x, before)


def test_evaluation_changes_no_state(case):
    layer = case.build()
    layer(torch.randn(4, 16, 5, 5))
    before = state_of(layer.eval())
    layer(torch.randn(4, 16, 5, 5))
    assert all(torch.equal(before[name], value) for name, value in state_of(layer).items())


def test_evaluation_gives_every_sample_its_own_result(case):
    layer = case.build()
    layer(torch.randn(4, 16, 5, 5))
    x = torch.randn(4, 16, 5, 5)
    torch.testing.assert_close(layer.eval()(x)[:1], layer(x[:1]))


def test_what_is_observed_is_finite_numbers(case):
    model = nn.Sequential(case.build())
    model(torch.randn(4, 16, 5, 5))
    observed = case.info.observe(model) if case.info.observe else {}
    assert all(math.isfinite(value) for value in observed.values())


def test_observing_a_model_without_the_method_gives_nothing(case):
    assert not (case.info.observe and case.info.observe(nn.Sequential(nn.ReLU())))
