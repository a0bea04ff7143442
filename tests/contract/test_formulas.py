"""Every layer against its paper's equation in plain float64, output and gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracles.formulas import FORMULAS, SETTINGS, WEIGHT_FORMULAS, At
from torch import Tensor, nn
from torch.nn import functional as F

from normbench import registry

HOW = "write its equation into tests/oracles/formulas.py (docs/methods.md shows how)"
WEIGHT_SIDE = [n for n in registry.list_methods() if registry.get(n).weight is not None]


def varied(layer: nn.Module) -> nn.Module:
    """The layer in float64, no parameter or average at its initial value."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in layer.double().parameters():
            parameter += 0.3 * torch.randn_like(parameter)
        for name, buffer in layer.named_buffers():
            if name.startswith("running_"):
                buffer += 0.5 * torch.rand_like(buffer)
    return layer


@pytest.mark.parametrize("shape", [(3, 4, 5, 2), (6, 4, 7)], ids=str)
def test_output_and_gradients_are_those_of_the_equation(case, shape):
    assert case.name in FORMULAS, f"{case.name} has no oracle: {HOW}"
    for given in ({}, *SETTINGS.get(case.name, ())):
        layer = varied(case.build(4, **given))
        names = [name for name, _ in layer.named_parameters()]
        buffers = {name: buffer.clone() for name, buffer in layer.named_buffers()}
        x, probe = torch.randn(shape, dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
        theirs = [v.detach().clone().requires_grad_() for v in (x, *layer.parameters())]
        state = buffers | dict(zip(names, theirs[1:], strict=True))
        at = At(state, registry.resolve_params(case.name, given), case.act and case.act())
        ours = [x.requires_grad_(), *layer.parameters()]
        found = with_gradients(layer(x), ours, probe)
        expected = with_gradients(FORMULAS[case.name](theirs[0], at), theirs, probe)
        for what, mine, paper in zip(("y", "x", *names), found, expected, strict=True):
            # 1e-6: a Gauss-Hermite rule, where a method uses one, is right to some 1e-7.
            np.testing.assert_allclose(mine, paper, 1e-6, 1e-6, err_msg=f"{what} at {given}")


def with_gradients(y: Tensor, inputs: list[Tensor], probe: Tensor) -> list[Tensor]:
    return [y.detach(), *torch.autograd.grad(y, inputs, probe)]


@pytest.mark.parametrize("name", WEIGHT_SIDE)
def test_the_weight_in_use_and_its_gradient_are_those_of_the_equation(name: str) -> None:
    assert name in WEIGHT_FORMULAS, f"{name} has no oracle for its weight side: {HOW}"
    conv = nn.Conv2d(4, 6, 3).double()
    learned = conv.weight.detach().clone().requires_grad_()
    weight_side = registry.get(name).weight
    assert weight_side is not None
    layer = weight_side(conv) or conv
    x, probe = torch.randn(2, 4, 5, 5).double(), torch.randn(2, 6, 3, 3).double()
    y = layer(x)
    paper = F.conv2d(x, WEIGHT_FORMULAS[name](learned), conv.bias)
    torch.testing.assert_close(y, paper)
    (expected,) = torch.autograd.grad(paper, learned, probe)
    of_weight = dict(layer.named_parameters())
    [original] = [p for n, p in of_weight.items() if p.shape == learned.shape]
    torch.testing.assert_close(torch.autograd.grad(y, original, probe)[0], expected)
