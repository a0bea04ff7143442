"""Every layer against its paper's equation in plain float64: output, gradients and state."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from oracles.formulas import ORACLES, WEIGHT_FORMULAS, At
from torch import Tensor, nn
from torch.nn import functional as F

from normbench import registry

HOW = "write its equation into a file of tests/oracles/formulas/ (docs/methods.md shows how)"
WEIGHT_SIDE = [n for n in registry.list_methods() if registry.get(n).weight is not None]
STEPS = (True, True, True, False)
"""Three training forwards, then evaluation."""


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
def test_output_gradients_and_state_are_those_of_the_equation(case, shape):
    assert case.name in ORACLES, f"{case.name} has no oracle: {HOW}"
    for given in ({}, *ORACLES[case.name].settings):
        layer = varied(case.build(4, **given))
        params, memory = registry.resolve_params(case.name, given), {}
        for step, training in enumerate(STEPS):
            before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
            theirs = {n: p.detach().clone().requires_grad_() for n, p in layer.named_parameters()}
            act = case.act() if case.act else None
            at = At(before | theirs, params, act, training, memory)
            where = f"{case.name} {given}, step {step}, training={training}"
            formula = ORACLES[case.name].formula
            after = compare(layer.train(training), formula, shape, theirs, at, where)
            compare_state(layer, before, after, where)


def compare(layer, formula, shape, theirs, at, where):
    """Output and gradients of one step; the buffers that the formula says are changed."""
    x, probe = (torch.randn(shape, dtype=torch.float64) for _ in range(2))
    ours, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    result = formula(other, at)
    paper, changed = result if isinstance(result, tuple) else (result, {})
    found = with_gradients(layer(ours), [ours, *layer.parameters()], probe)
    expected = with_gradients(paper, [other, *theirs.values()], probe)
    for what, mine, papers in zip(("y", "x", *theirs), found, expected, strict=True):
        # 1e-6: a Gauss-Hermite rule, where a method uses one, is right to some 1e-7.
        np.testing.assert_allclose(mine, papers, 1e-6, 1e-6, err_msg=f"{what} of {where}")
    return changed


def with_gradients(y: Tensor, inputs: list[Tensor], probe: Tensor) -> list[Tensor]:
    gradients = torch.autograd.grad(y, inputs, probe, materialize_grads=True)
    return [y.detach(), *gradients]


def compare_state(layer, before, after, where):
    persistent = {name for name in layer.state_dict() if name in before}
    counter = "num_batches_tracked"
    if counter in before and counter not in after:
        after = after | {counter: before[counter] + int(layer.training)}
    for name, buffer in layer.named_buffers():
        if name in persistent or name in after:
            expected = after.get(name, before[name]).detach()
            err = f"buffer {name} of {where}"
            np.testing.assert_allclose(buffer, expected, 1e-9, 1e-9, err_msg=err)


@pytest.mark.parametrize("name", WEIGHT_SIDE)
def test_the_weight_in_use(name: str) -> None:
    if reason := ORACLES[name].exempt.get("test_the_weight_in_use"):
        pytest.skip(f"{name}: {reason}")
    assert name in WEIGHT_FORMULAS, f"{name} has no oracle for its weight side: {HOW}"
    conv = nn.Conv2d(4, 6, 3).double()
    learned = conv.weight.detach().clone().requires_grad_()
    weight_side = registry.get(name).weight
    assert weight_side is not None
    layer = weight_side(conv, **registry.resolve_params(name)) or conv
    x, probe = torch.randn(2, 4, 5, 5).double(), torch.randn(2, 6, 3, 3).double()
    y = layer(x)
    paper = F.conv2d(x, WEIGHT_FORMULAS[name](learned), conv.bias)
    torch.testing.assert_close(y, paper)
    (expected,) = torch.autograd.grad(paper, learned, probe)
    of_weight = dict(layer.named_parameters())
    [original] = [p for n, p in of_weight.items() if p.shape == learned.shape]
    torch.testing.assert_close(torch.autograd.grad(y, original, probe)[0], expected)


def test_exemptions_name_methods_and_tests_that_exist(request: pytest.FixtureRequest) -> None:
    tests = {
        name
        for path in request.path.parent.glob("test_*.py")
        for name in re.findall(r"^def (test_\w+)", path.read_text("utf-8"), re.MULTILINE)
    }
    assert set(ORACLES) <= set(registry.list_methods())
    wrong = {m: set(o.exempt) - tests for m, o in ORACLES.items() if set(o.exempt) - tests}
    assert not wrong
    assert all(reason for o in ORACLES.values() for reason in o.exempt.values())
