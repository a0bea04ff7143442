"""batch_norm and moving_average_norm against the papers' equations and torch's layer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from checks import TOLERANCE, assert_gradients, forward, set_parameters
from oracles import norms
from torch import nn

from normbench import build

C = 3
ORACLES = {"batch_norm": norms.BatchNorm, "moving_average_norm": norms.MovingAverage}


@pytest.fixture(params=sorted(ORACLES))
def pair(request, rng):
    gamma, beta = rng.normal(1, 0.3, C), rng.normal(size=C)
    layer = set_parameters(build(request.param, C, eps=1e-3, momentum=0.2), weight=gamma, bias=beta)
    return layer, ORACLES[request.param](C, 1e-3, 0.2), gamma, beta


def test_training_follows_the_equation_over_several_steps(pair, rng):
    layer, oracle, gamma, beta = pair
    for _ in range(3):
        x = rng.normal(2, 3, (4, C, 5, 2))
        np.testing.assert_allclose(forward(layer, x), oracle.train(x, gamma, beta), **TOLERANCE)
        oracle.update(x)
    np.testing.assert_allclose(layer.running_mean, oracle.mean, **TOLERANCE)
    np.testing.assert_allclose(layer.running_var, oracle.var, **TOLERANCE)
    assert layer.num_batches_tracked == 3


def test_evaluation_uses_the_running_averages(pair, rng):
    layer, oracle, gamma, beta = pair
    x = rng.normal(2, 3, (4, C, 5, 2))
    forward(layer, x)
    oracle.update(x)
    x = rng.normal(size=(1, C, 5, 2))
    expected = oracle.evaluate(x, gamma, beta)
    np.testing.assert_allclose(forward(layer.eval(), x), expected, **TOLERANCE)


def test_gradients_in_training_after_a_step(pair, rng):
    layer, oracle, gamma, beta = pair
    x = rng.normal(2, 3, (3, C, 2, 2))
    forward(layer, x)
    oracle.update(x)
    x = rng.normal(size=(3, C, 2, 2))
    assert_gradients(
        layer, lambda x, weight, bias: oracle.train(x, weight, bias), x, weight=gamma, bias=beta
    )


def test_batch_norm_is_torchs_layer_in_training_and_evaluation():
    ours, torchs = build("batch_norm", 8), nn.BatchNorm2d(8)
    for _ in range(3):
        x = torch.randn(4, 8, 6, 6) * 2 + 1
        assert torch.equal(ours(x), torchs(x))
    assert torch.equal(ours.eval()(x), torchs.eval()(x))


def test_batch_norm_exchanges_state_with_torchs_layer():
    torchs = nn.BatchNorm2d(8)
    torchs(torch.randn(4, 8, 6, 6))
    ours = build("batch_norm", 8)
    ours.load_state_dict(torchs.state_dict())
    assert list(ours.state_dict()) == list(torchs.state_dict())
    assert torch.equal(ours.running_var, torchs.running_var)


def test_nothing_of_ours_is_torchs_batch_norm():
    # converters match by isinstance and would replace the layer behind our back
    assert not isinstance(build("batch_norm", 8), nn.modules.batchnorm._BatchNorm)


def test_moving_average_norm_forgets_the_gradient_through_the_batch():
    # without that gradient, a shift of the whole batch changes the loss: Σ dx is not 0
    x = torch.randn(8, 4, 3, 3, requires_grad=True)
    build("moving_average_norm", 4)(x).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.full_like(x, 1 / np.sqrt(1 + 1e-5)))


@pytest.mark.parametrize(
    ("method", "grows"), [("batch_norm", False), ("moving_average_norm", True)]
)
def test_only_moving_averages_let_a_rescaled_weight_pull_on_the_loss(method, grows):
    # batch statistics make the loss invariant to the weight's scale: <w, dL/dw> = 0
    torch.manual_seed(0)
    w = torch.randn(4, 3, 1, 1, requires_grad=True)
    x, target = torch.randn(16, 3, 4, 4), torch.randn(16, 4, 4, 4)
    layer = build(method, 4, eps=1e-12)
    ((layer(nn.functional.conv2d(x, w)) - target) ** 2).mean().backward()
    assert w.grad is not None
    assert ((w * w.grad).sum().abs().item() > 1e-2) is grows


def test_two_forwards_before_a_backward_keep_both_gradients():
    layer = build("moving_average_norm", 2).double()
    first = torch.randn(4, 2, dtype=torch.float64, requires_grad=True)
    y = layer(first)
    layer(torch.randn(4, 2, dtype=torch.float64) * 9)
    y.sum().backward()
    assert first.grad is not None
    torch.testing.assert_close(first.grad, torch.full_like(first, (1 + 1e-5) ** -0.5))


def test_an_evaluated_batch_norm_folds_into_the_convolution_before_it():
    # γ(w∗x + b - μ)/√(σ²+ε) + β is a convolution with sw and bias s(b - μ) + β, s = γ/√(σ²+ε)
    conv, norm = nn.Conv2d(3, 5, 3, padding=1).double(), build("batch_norm", 5).double()
    set_parameters(norm, weight=np.linspace(-1, 2, 5), bias=np.linspace(1, 3, 5))
    for _ in range(3):
        norm(conv(torch.randn(4, 3, 6, 6, dtype=torch.float64) * 2 + 1))
    norm.eval()
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    weight = conv.weight * scale[:, None, None, None]
    bias = (conv.bias - norm.running_mean) * scale + norm.bias
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    folded = nn.functional.conv2d(x, weight, bias, padding=1)
    torch.testing.assert_close(norm(conv(x)), folded, rtol=1e-12, atol=1e-12)


def weight_growth(method: str) -> float:
    """‖w‖ after a few dozen steps of SGD without weight decay, over ‖w‖ before."""
    torch.manual_seed(0)
    x, labels = torch.randn(32, 3, 6, 6), torch.randint(4, (32,))
    conv = nn.Conv2d(3, 8, 3, bias=False)
    net = nn.Sequential(
        conv, build(method, 8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    )
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    before = conv.weight.norm().item()
    for _ in range(40):
        nn.functional.cross_entropy(net(x), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    return conv.weight.norm().item() / before


def test_weights_before_moving_averages_grow_more_than_before_batch_norm():
    # what Ioffe 2017 (arXiv:1702.03275) warns of; batch_norm's gradient is orthogonal
    # to w, so that ‖w‖ grows in the second order of the step only
    batch, moving = weight_growth("batch_norm"), weight_growth("moving_average_norm")
    assert moving > 1
    assert moving - 1 > 2 * (batch - 1)
