"""The mean and variance that methods mix, against torch.var_mean in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from normbench.kernels.mean_and_variance import mean_and_variance


def reference(x: Tensor, dims: tuple[int, ...], keepdim: bool) -> tuple[Tensor, Tensor]:
    var, mean = torch.var_mean(x, dims, correction=0, keepdim=keepdim)
    return mean, var


@pytest.mark.parametrize("keepdim", [True, False])
@pytest.mark.parametrize("dims", [(2, 3), (0, 2, 3), (1,)])
def test_values_and_gradients_are_those_of_var_mean(dims: tuple[int, ...], keepdim: bool) -> None:
    x = (3 * torch.randn(3, 4, 2, 5, dtype=torch.float64) + 1).requires_grad_()
    found = mean_and_variance(x, dims, keepdim=keepdim)
    expected = reference(x, dims, keepdim)
    torch.testing.assert_close(found, expected)
    weights = [torch.randn_like(t) for t in expected]
    ours, theirs = (torch.autograd.grad(pair, x, weights) for pair in (found, expected))
    torch.testing.assert_close(ours, theirs)


def test_it_can_be_differentiated_twice() -> None:
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t: mean_and_variance(t, (0, 2)), x)
    assert torch.autograd.gradgradcheck(lambda t: mean_and_variance(t, (0, 2)), x)


def test_a_large_mean_cancels_nothing() -> None:
    x = 1000 + torch.randn(8, 1000)
    _, var = mean_and_variance(x, range(1, 2))
    expected = x.double().var(1, correction=0)
    torch.testing.assert_close(var.double(), expected, rtol=1e-4, atol=0)


def test_one_value_has_variance_zero() -> None:
    mean, var = mean_and_variance(torch.tensor([[2.0]]), (1,))
    assert (mean.item(), var.item()) == (2, 0)
