"""A layer beside one of torch's, or one put together from torch's, on the same numbers."""

from __future__ import annotations

import torch


def data(*shape, shift=2.0):
    torch.manual_seed(0)
    return torch.randn(shape, dtype=torch.float64) * 3 + shift


def with_values(layer, **values):
    """The layer in float64, parameters set to the given numbers."""
    layer.double()
    with torch.no_grad():
        for name, value in values.items():
            layer.get_parameter(name).copy_(torch.as_tensor(value, dtype=torch.float64))
    return layer


def agree(ours, theirs, x):
    """In training, its gradient by x and evaluation after it."""
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = ours(a), theirs(b)
    torch.testing.assert_close(y, expected)
    y.cos().sum().backward()
    expected.cos().sum().backward()
    torch.testing.assert_close(a.grad, b.grad)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))
