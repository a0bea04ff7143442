"""dyt and derf: a function of each value alone."""

from __future__ import annotations

import math

import pytest
import torch

from normbench import build

C = 6
FUNCTIONS = {"dyt": math.tanh, "derf": math.erf}


@pytest.mark.parametrize("method", FUNCTIONS)
def test_it_starts_as_the_function_of_half_the_value(method):
    x = torch.linspace(-4, 4, C)
    expected = torch.tensor([FUNCTIONS[method](v / 2) for v in x.tolist()])
    torch.testing.assert_close(build(method, C)(x[None]), expected[None])


@pytest.mark.parametrize(
    ("method", "names"),
    [("dyt", ["alpha", "bias", "weight"]), ("derf", ["alpha", "bias", "shift", "weight"])],
)
def test_alpha_and_shift_are_one_number_a_layer(method, names):
    parameters = dict(build(method, C).named_parameters())
    assert sorted(parameters) == names
    assert all(parameters[n].numel() == 1 for n in names if n not in ("weight", "bias"))


def test_they_start_where_they_are_told_to():
    assert build("dyt", C, alpha=0.2).alpha.tolist() == pytest.approx([0.2])
    derf = build("derf", C, alpha=0.2, shift=-0.1)
    assert (derf.alpha.item(), derf.shift.item()) == pytest.approx((0.2, -0.1))


def test_derf_adds_the_shift_after_the_scaling():
    y = build("derf", C, alpha=0.5, shift=0.3)(torch.full((1, C), 2.0))
    torch.testing.assert_close(y, torch.full((1, C), math.erf(1.3)))


@pytest.mark.parametrize("method", FUNCTIONS)
def test_every_value_is_alone(method):
    layer, x = build(method, C), torch.randn(4, C, 5, 5)
    assert torch.equal(layer(x)[2:3, :, 1:2, 3:4], layer(x[2:3, :, 1:2, 3:4]))
    assert torch.isfinite(layer(torch.randn(1, C))).all()


@pytest.mark.parametrize("method", FUNCTIONS)
def test_output_is_bounded_and_its_gradient_finite_for_huge_values(method):
    x = torch.tensor([-1e30, 1e30]).repeat(1, C // 2).requires_grad_()
    y = build(method, C)(x)
    y.sum().backward()
    assert torch.equal(y, x.detach().sign())
    assert torch.equal(x.grad, torch.zeros_like(x))
