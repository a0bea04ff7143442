"""Comparing a layer with an oracle: same inputs, outputs and gradients side by side."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from oracles.norms import Array, gradient
from torch import nn

TOLERANCE = {"rtol": 1e-6, "atol": 1e-7}


def tensor(values: Array) -> torch.Tensor:
    return torch.from_numpy(values.copy())


def set_parameters(layer: nn.Module, **values: Array) -> nn.Module:
    """The layer in float64 with the given parameters."""
    layer.double()
    with torch.no_grad():
        for name, value in values.items():
            layer.get_parameter(name).copy_(tensor(value))
    return layer


def forward(layer: nn.Module, x: Array) -> Array:
    result: Array = layer(tensor(x)).detach().numpy()
    return result


def assert_gradients(
    layer: nn.Module, oracle: Callable[..., Array], x: Array, **parameters: Array
) -> None:
    """Gradients of Σ probe·y by x and every parameter equal the oracle's finite differences.

    `oracle` takes x and the parameters by name.
    """
    probe = np.random.default_rng(1).normal(size=x.shape)
    leaf = tensor(x).requires_grad_()
    (layer(leaf) * tensor(probe)).sum().backward()

    def loss(**changed: Array) -> float:
        return float((probe * oracle(**{"x": x, **parameters, **changed})).sum())

    assert leaf.grad is not None
    found = {"x": leaf.grad} | {n: layer.get_parameter(n).grad for n in parameters}
    for name, value in {"x": x, **parameters}.items():
        expected = gradient(lambda v, name=name: loss(**{name: v}), value)  # type: ignore[misc]
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-6, err_msg=name)
