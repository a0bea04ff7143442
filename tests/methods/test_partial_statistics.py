"""Layers that use a part of the batch's statistics, or several sets of them: limits, decisions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from beside_torch import agree, data, with_values
from checks import TOLERANCE, assert_gradients, forward, set_parameters
from torch import nn

import normbench
from normbench import build


def test_representative_batch_norm_starts_as_batch_norm_times_sigmoid_of_one():
    class Scaled(nn.BatchNorm2d):
        def forward(self, x):
            return torch.sigmoid(torch.tensor(1.0).double()) * super().forward(x)

    agree(build("representative_batch_norm", 8).double(), Scaled(8).double(), data(6, 8, 5, 4))


def test_representative_batch_norm_removes_instance_means_at_center_weight_minus_one():
    layer = with_values(build("representative_batch_norm", 8), center_weight=-1.0)
    y = layer(data(6, 8, 5, 4))
    torch.testing.assert_close(y.mean((2, 3)), torch.zeros(6, 8).double())
    assert layer.running_mean.abs().max() < 1e-12


def test_representative_batch_norm_gates_by_the_mean_after_normalization():
    x = data(6, 8, 5, 4)
    layer = with_values(build("representative_batch_norm", 8), scale_weight=2.0, scale_bias=0.5)
    normalized = nn.BatchNorm2d(8, affine=False).double()(x)
    gate = torch.sigmoid(2 * normalized.mean((2, 3), keepdim=True) + 0.5)
    torch.testing.assert_close(layer(x), gate * normalized)


def test_variance_only_batch_norm_is_batch_norm_with_its_mean_put_back(rng):
    x = data(6, 8, 5, 4)
    bn = nn.BatchNorm2d(8, affine=False).double()
    ours = build("variance_only_batch_norm", 8).double()
    mean, var = x.mean((0, 2, 3)), x.var((0, 2, 3), correction=0)
    put_back = (mean / (var + 1e-5).sqrt()).view(1, -1, 1, 1)
    torch.testing.assert_close(ours(x), bn(x) + put_back)
    torch.testing.assert_close(ours.running_var, bn.running_var)
    torch.testing.assert_close(ours.running_mean, bn.running_mean)


def test_variance_only_batch_norm_has_unit_variance_whatever_the_mean():
    # E[x²] in place of the variance would give 0.08 at mean 10, deviation 3
    y = build("variance_only_batch_norm", 8, eps=1e-12).double()(data(64, 8, 5, 4, shift=10.0))
    torch.testing.assert_close(y.var((0, 2, 3), correction=0), torch.ones(8).double())
    assert (y.mean((0, 2, 3)) > 3).all()


def test_variance_only_batch_norm_divides_by_the_running_variance_in_evaluation():
    layer = build("variance_only_batch_norm", 4, eps=0.25).eval()
    layer.running_var.fill_(2.0)
    layer.running_mean.fill_(5.0)
    x = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(layer(x), x / 1.5)


def test_mode_norm_of_one_mode_is_batch_norm_in_training():
    x = data(6, 8, 5, 4)
    ours, theirs = build("mode_norm", 8, modes=1).double(), nn.BatchNorm2d(8).double()
    torch.testing.assert_close(ours(x), theirs(x))


def test_mode_norm_with_sure_gates_is_batch_norm_of_each_mode():
    # samples of two kinds that the gate tells apart by the sign of their mean
    torch.manual_seed(0)
    x = torch.randn(8, 4, 5, 5).double()
    x[::2] = 2 * x[::2] + 20
    x[1::2] -= 20
    gate = torch.tensor([1.0, -1.0]).repeat_interleave(4)
    y = with_values(build("mode_norm", 4), gate_weight=gate)(x)
    for part in (slice(0, None, 2), slice(1, None, 2)):
        expected = nn.BatchNorm2d(4).double()(x[part])
        torch.testing.assert_close(y[part], expected)


def test_mode_norm_with_equal_gates_is_batch_norm():
    layer = with_values(build("mode_norm", 8, modes=3), gate_weight=0.0)
    x = data(6, 8, 5, 4)
    torch.testing.assert_close(layer(x), nn.BatchNorm2d(8).double()(x))


@pytest.mark.parametrize("training", [True, False])
def test_a_mode_that_nobody_chooses_leaves_numbers_and_gradients_finite(training):
    layer = build("mode_norm", 4).train(training)
    with torch.no_grad():
        layer.gate_bias.copy_(torch.tensor([0.0, -1e4]))
    x = torch.randn(6, 4, 3, 3, requires_grad=True)
    y = layer(x)
    y.square().sum().backward()
    assert torch.isfinite(y).all()
    assert all(torch.isfinite(t.grad).all() for t in [x, *layer.parameters()])


def test_mode_norm_evaluates_by_the_averages_of_square_and_mean():
    layer = build("mode_norm", 2, eps=0.5).eval()
    layer.running_mean.copy_(torch.tensor([1.0, 1.0, -1.0, -1.0]))
    layer.running_square.copy_(torch.tensor([4.5, 4.5, 2.5, 2.5]))  # variances 3.5 and 1.5
    with torch.no_grad():
        layer.gate_weight.zero_()
    x = torch.randn(3, 2, 4, 4)
    expected = 0.5 * (x - 1) / 4**0.5 + 0.5 * (x + 1) / 2**0.5
    torch.testing.assert_close(layer(x), expected)


def test_mode_norms_gate_starts_the_same_everywhere_and_not_alike_in_its_modes():
    torch.manual_seed(1)
    first = build("mode_norm", 64).gate_weight
    torch.manual_seed(2)
    assert torch.equal(first, build("mode_norm", 64).gate_weight)
    modes = first.detach().view(2, 64)
    assert 0.005 < (modes[0] - modes[1]).std() < 0.03
    torch.testing.assert_close(modes.mean(), torch.tensor(0.5), rtol=0, atol=0.01)


def test_extended_batch_norm_divides_by_the_deviation_of_everything(rng):
    x = data(6, 8, 5, 4) * torch.linspace(0.5, 2, 8).double().view(1, -1, 1, 1)
    y = build("extended_batch_norm", 8, eps=1e-12).double()(x)
    centred = x - x.mean((0, 2, 3), keepdim=True)
    torch.testing.assert_close(y, centred / x.std(correction=0))


def test_extended_batch_norms_deviation_is_about_the_common_mean():
    # channel means ±10 and deviation 1: about the channels' means it would be 1, here √101
    x = data(64, 2, 5, 4, shift=0.0) / 3 + torch.tensor([10.0, -10.0]).view(1, 2, 1, 1)
    y = build("extended_batch_norm", 2).double()(x)
    torch.testing.assert_close(y.std().item(), 101**-0.5, rtol=0.02, atol=0)


def test_extended_batch_norm_of_one_channel_is_batch_norm():
    agree(build("extended_batch_norm", 1).double(), nn.BatchNorm2d(1).double(), data(6, 1, 5, 4))


def test_extended_batch_norm_takes_over_a_batch_norms_state():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8))
    x = torch.randn(64, 3, 9, 9) * 2 + 1
    for _ in range(200):
        model(x)
    normbench.swap(model, "extended_batch_norm", example_input=x)
    z = model[0](x)
    torch.testing.assert_close(model[1].running_mean, z.mean((0, 2, 3)), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(model[1].running_layer_var, z.var()[None], rtol=1e-3, atol=1e-3)


def test_mean_only_batch_norm_centres_the_input_and_the_gradient():
    x = data(6, 8, 5, 4).requires_grad_()
    layer = with_values(build("mean_only_batch_norm", 8), bias=0.5)
    y = layer(x)
    torch.testing.assert_close(y, x - x.mean((0, 2, 3), keepdim=True) + 0.5)
    probe = torch.randn_like(y)
    (y * probe).sum().backward()
    torch.testing.assert_close(x.grad, probe - probe.mean((0, 2, 3), keepdim=True))
    torch.testing.assert_close(layer.running_mean, 0.1 * x.detach().mean((0, 2, 3)))


def test_mean_only_batch_norm_takes_over_a_running_mean_and_has_no_scale():
    model = nn.Sequential(nn.BatchNorm2d(8))
    x = torch.randn(4, 8, 5, 5) + 3
    model(x)
    mean = model[0].running_mean.clone()
    normbench.swap(model, "mean_only_batch_norm", example_input=x)
    assert torch.equal(model[0].running_mean, mean)
    assert [name for name, _ in model[0].named_parameters()] == ["bias"]


def test_mean_only_batch_norm_of_one_value_is_beta():
    layer = with_values(build("mean_only_batch_norm", 4), bias=2.0)
    assert torch.equal(layer(data(1, 4)), torch.full((1, 4), 2.0).double())


def test_finite_differences_of_representative_batch_norm(rng):
    gamma, beta = rng.normal(1, 0.3, 3), rng.normal(size=3)
    center, scale, bias = rng.normal(size=3), rng.normal(size=3), rng.normal(size=3)
    parameters = {
        "weight": gamma, "bias": beta, "center_weight": center, "scale_weight": scale,
        "scale_bias": bias,
    }  # fmt: skip
    layer = set_parameters(build("representative_batch_norm", 3, eps=1e-3), **parameters)

    def oracle(x, weight, bias, center_weight, scale_weight, scale_bias):
        def of(values):
            return values.reshape(1, -1, 1, 1)

        x = x + of(center_weight) * x.mean((2, 3), keepdims=True)
        x = (x - x.mean((0, 2, 3), keepdims=True)) / np.sqrt(x.var((0, 2, 3), keepdims=True) + 1e-3)
        gate = of(scale_weight) * x.mean((2, 3), keepdims=True) + of(scale_bias)
        return of(weight) * x / (1 + np.exp(-gate)) + of(bias)

    x = rng.normal(2, 3, (3, 3, 2, 2))
    np.testing.assert_allclose(forward(layer, x), oracle(x, **parameters), **TOLERANCE)
    assert_gradients(layer, oracle, x, **parameters)
