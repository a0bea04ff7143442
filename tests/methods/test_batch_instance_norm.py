from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from normbench import build, registry

C = 6


def gated(value, **params):
    layer = build("batch_instance_norm", C, **params)
    nn.init.constant_(layer.rho, value)
    return layer


def test_a_gate_of_one_is_batch_norm_in_training_and_evaluation():
    layer, batch = build("batch_instance_norm", C), nn.BatchNorm2d(C)
    for training in (True, True, False):
        x = torch.randn(4, C, 5, 5) * 2 + 1
        torch.testing.assert_close(layer.train(training)(x), batch.train(training)(x))
    torch.testing.assert_close(layer.running_var, batch.running_var)


def test_a_gate_of_zero_is_instance_norm_in_training_and_evaluation():
    layer, x = gated(0.0), torch.randn(4, C, 5, 5) * 2 + 1
    for training in (True, False):
        torch.testing.assert_close(layer.train(training)(x), F.instance_norm(x))


def test_a_gate_between_mixes_before_gamma_and_beta():
    layer, x = gated(0.25), torch.randn(4, C, 5, 5)
    with torch.no_grad():
        layer.weight.fill_(2)
        layer.bias.fill_(-3)
    mixed = 0.25 * F.batch_norm(x, None, None, training=True) + 0.75 * F.instance_norm(x)
    torch.testing.assert_close(layer(x), 2 * mixed - 3)


def test_gradients_inside_the_bounds_are_those_of_the_forward():
    layer = gated(0.5).double()

    def forward(x, *parameters):
        names = [name for name, _ in layer.named_parameters()]
        fresh = {name: b.clone() for name, b in layer.named_buffers()}
        given = dict(zip(names, parameters, strict=True)) | fresh
        return torch.func.functional_call(layer, given, (x,))

    x = torch.randn(3, C, 2, 2).double().requires_grad_()
    values = [p.detach().clone().requires_grad_() for p in layer.parameters()]
    assert torch.autograd.gradcheck(forward, (x, *values))


@pytest.mark.parametrize(("outside", "bound"), [(1.7, 1.0), (-0.4, 0.0)])
def test_a_training_forward_clips_the_gate_in_place_and_evaluation_only_what_it_uses(
    outside, bound
):
    x = torch.randn(4, C, 5, 5)
    layer = gated(outside).eval()
    torch.testing.assert_close(layer(x), gated(bound).eval()(x))
    assert layer.rho.tolist() == pytest.approx([outside] * C)
    torch.testing.assert_close(layer.train()(x), gated(bound)(x))
    assert layer.rho.tolist() == [bound] * C


def test_a_gate_pushed_over_its_bound_comes_back():
    # projected gradient descent: out of [0, 1] it is set to the bound, and may leave it inwards
    layer, x = build("batch_instance_norm", C), torch.randn(4, C, 5, 5)
    optimizer = torch.optim.SGD([layer.rho], lr=1.0)
    difference = (F.batch_norm(x, None, None, training=True) - F.instance_norm(x)).detach()
    for direction in (-1, 1):
        optimizer.zero_grad()
        (direction * (layer(x) * difference).sum()).backward()
        assert (layer.rho.grad.sign() == direction).all()
        optimizer.step()
    expected = (1 - difference.square().sum((0, 2, 3))).clamp(min=0)
    layer(x)
    torch.testing.assert_close(layer.rho.detach(), expected)


def test_two_forwards_before_a_backward_are_allowed():
    layer, x = build("batch_instance_norm", C), torch.randn(4, C, 5, 5)
    (layer(x).sum() + layer(x * 2).square().sum()).backward()
    assert torch.isfinite(layer.rho.grad).all()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(4, C), (4, C, 1, 1)], ids=str)
def test_single_values_are_refused_and_leave_the_state_alone(shape, training):
    layer = build("batch_instance_norm", C).train(training)
    with pytest.raises(ValueError, match="values per channel"):
        layer(torch.randn(shape))
    assert int(layer.num_batches_tracked) == 0
    assert torch.equal(layer.running_mean, torch.zeros(C))


def test_the_mean_gate_is_observed():
    observe = registry.get("batch_instance_norm").observe
    assert observe is not None
    model = nn.Sequential(gated(0.5), gated(3.0))
    assert observe(model) == {"batch_instance_norm_rho_mean": pytest.approx(0.75)}
