"""Methods that mix or pool batch, instance and layer statistics: limits, decisions, edges."""

from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from checks import TOLERANCE, assert_gradients, forward, set_parameters
from torch import nn

import normbench
from normbench import build

METHODS = [
    "switchable_norm", "ibn_a", "batch_group_norm", "representative_batch_norm",
    "variance_only_batch_norm", "mode_norm", "extended_batch_norm", "mean_only_batch_norm",
]  # fmt: skip
SHAPES = [(6, 8, 5, 4), (6, 8, 7), (6, 8, 3, 2, 2)]


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


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_it_trains_in_a_timm_model(method, name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10)
    report = normbench.swap(model, method)
    assert report.replaced == report.found > 0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    x, labels = torch.randn(4, 3, 96, 96), torch.arange(4)
    for _ in range(2):
        loss = nn.functional.cross_entropy(model(x), labels)
        assert torch.isfinite(loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert torch.isfinite(model.eval()(x)).all()


# The limits: with its parameters at the right end, a mixture is one of its parts.


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("part", [0, 1, 2])
def test_switchable_norm_with_one_part_is_that_norm(part, shape):
    x = data(*shape)
    # 40 apart: the softmax of the others is 4e-18
    layer = with_values(build("switchable_norm", 8), mean_weight=[0, 0, 0], var_weight=[0, 0, 0])
    with torch.no_grad():
        layer.mean_weight[part] = layer.var_weight[part] = 40
    mean_in, var_in = x.flatten(2).mean(2), x.flatten(2).var(2)
    of_all = (var_in + mean_in**2, mean_in)
    if part == 0:
        mean, var = mean_in, var_in
    else:
        square, mean = (m.mean(2 - part, keepdim=True) for m in of_all)
        var = square - mean**2
    expected = (x.flatten(2) - mean[:, :, None]) / (var[:, :, None] + 1e-5).sqrt()
    torch.testing.assert_close(layer(x), expected.view(shape))


def test_switchable_norm_is_batch_norm_but_for_the_unbiased_instance_variance():
    x = data(6, 8, 100, 100)
    layer = with_values(build("switchable_norm", 8), mean_weight=[0, 0, 40], var_weight=[0, 0, 40])
    torch.testing.assert_close(layer(x), nn.BatchNorm2d(8).double()(x), rtol=1e-4, atol=1e-4)


def test_switchable_norm_starts_with_equal_parts():
    layer = build("switchable_norm", 4)
    assert torch.equal(layer.mean_weight, torch.ones(3))
    assert torch.equal(layer.var_weight, torch.ones(3))


def test_switchable_norm_mixes_means_and_variances_by_their_own_weights():
    x = data(6, 8, 5, 4)
    layer = with_values(build("switchable_norm", 8), mean_weight=[40, 0, 0], var_weight=[0, 0, 40])
    y = layer(x)
    # instance means: nothing left of them; batch variance: not 1 for every sample
    torch.testing.assert_close(y.mean((2, 3)), torch.zeros(6, 8).double())
    assert y.var((2, 3)).std() > 0.05


def test_switchable_norm_keeps_the_moments_that_its_code_derives():
    x = data(6, 8, 5, 4)
    layer = build("switchable_norm", 8).double()
    layer(x)
    mean_in, var_in = x.mean((2, 3)), x.var((2, 3))
    var_bn = (var_in + mean_in**2).mean(0) - mean_in.mean(0) ** 2
    torch.testing.assert_close(layer.running_mean, 0.1 * mean_in.mean(0))
    torch.testing.assert_close(layer.running_var, 0.9 + 0.1 * var_bn)


@pytest.mark.parametrize("shape", [(6, 8), (6, 8, 1, 1)], ids=str)
def test_switchable_norm_of_single_values_mixes_layer_and_batch_alone(shape):
    # the authors' SwitchNorm1d, whose variances are unbiased, has two weights
    layer = with_values(
        build("switchable_norm", 8), mean_weight=[9, 0.3, -0.2], var_weight=[9, 0.1, 0.5]
    )
    x = data(*shape)
    flat = x.view(6, 8)
    m, v = torch.softmax(layer.mean_weight[1:], 0), torch.softmax(layer.var_weight[1:], 0)
    mean = m[0] * flat.mean(1, keepdim=True) + m[1] * flat.mean(0)
    var = v[0] * flat.var(1, correction=0, keepdim=True) + v[1] * flat.var(0, correction=0)
    torch.testing.assert_close(layer(x), ((flat - mean) / (var + 1e-5).sqrt()).view(shape))


@pytest.mark.parametrize("channels", [8, 7])
def test_ibn_a_is_instance_norm_and_batch_norm_on_the_halves(channels):
    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.half = channels // 2
            self.IN = nn.InstanceNorm2d(self.half, affine=True)
            self.BN = nn.BatchNorm2d(channels - self.half)

        def forward(self, x):
            first, second = x[:, : self.half], x[:, self.half :]
            return torch.cat([self.IN(first), self.BN(second)], 1)

    agree(build("ibn_a", channels).double(), Halves().double(), data(6, channels, 5, 4))


@pytest.mark.parametrize(
    ("ratio", "theirs"), [(0, nn.BatchNorm2d(8)), (1, nn.InstanceNorm2d(8, affine=True))]
)
def test_ibn_a_at_the_ends_is_one_of_both(ratio, theirs):
    agree(build("ibn_a", 8, ratio=ratio).double(), theirs.double(), data(6, 8, 5, 4))


def test_ibn_a_leaves_the_averages_of_the_instance_half_alone():
    layer = build("ibn_a", 8)
    layer(torch.randn(4, 8, 5, 5) + 3)
    assert torch.equal(layer.running_mean[:4], torch.zeros(4))
    assert torch.equal(layer.running_var[:4], torch.ones(4))
    assert (layer.running_mean[4:] > 0.1).all()


@pytest.mark.parametrize("training", [True, False])
def test_ibn_a_refuses_maps_of_a_single_value(training):
    with pytest.raises(ValueError, match="values per channel"):
        build("ibn_a", 8).train(training)(torch.randn(4, 8, 1, 1))


def test_ibn_a_of_one_channel_is_batch_norm():
    agree(build("ibn_a", 1).double(), nn.BatchNorm2d(1).double(), data(6, 1, 5, 4))


def test_an_ibn_a_layer_is_still_cast_to_half():
    # nn.Module.half must not be shadowed by a field
    assert build("ibn_a", 8).half().weight.dtype == torch.float16


def test_batch_group_norm_with_a_group_a_channel_is_batch_norm():
    ours, theirs = build("batch_group_norm", 8, groups=8).double(), nn.BatchNorm2d(8).double()
    agree(ours, theirs, data(6, 8, 5, 4))
    torch.testing.assert_close(ours.running_var, theirs.running_var)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_batch_group_norm_is_batch_norm_of_the_flattened_groups(groups):
    class Flattened(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(groups, affine=False)

        def forward(self, x):
            return self.norm(x.reshape(len(x), groups, -1)).view(x.shape)

    agree(
        build("batch_group_norm", 8, groups=groups).double(),
        Flattened().double(),
        data(6, 8, 5, 4),
    )


def test_batch_group_norm_of_one_sample_is_group_norm():
    x = data(1, 8, 5, 4)
    theirs = nn.GroupNorm(2, 8).double()
    torch.testing.assert_close(build("batch_group_norm", 8, groups=2).double()(x), theirs(x))


@pytest.mark.parametrize(("channels", "used"), [(64, 32), (48, 24), (37, 1)])
def test_batch_group_norm_uses_the_largest_divisor(channels, used):
    layer = build("batch_group_norm", channels)
    assert layer.groups == used
    assert len(layer.running_mean) == used
    assert f"groups={used}" in repr(layer)


def test_batch_group_norm_needs_two_values_in_a_group_in_training_only():
    x = torch.randn(1, 8, 1, 1)
    with pytest.raises(ValueError, match="values per channel"):
        build("batch_group_norm", 8)(x)
    assert torch.isfinite(build("batch_group_norm", 8, groups=4)(x)).all()
    assert torch.isfinite(build("batch_group_norm", 8).eval()(x)).all()


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


@pytest.mark.parametrize(
    "method",
    ["switchable_norm", "representative_batch_norm", "variance_only_batch_norm", "mode_norm",
     "extended_batch_norm", "ibn_a"],
)  # fmt: skip
def test_one_value_per_channel_is_refused_in_training(method):
    with pytest.raises(ValueError, match="values per channel"):
        build(method, 4)(torch.randn(1, 4))


@pytest.mark.parametrize(
    "method", [m for m in METHODS if m not in ("mean_only_batch_norm", "variance_only_batch_norm")]
)
def test_eps_is_inside_the_root(method):
    # a constant input but for a deviation d: y ∝ d/√(d² + eps), not d/(d + √eps)
    x = torch.tensor([-0.1, 0.1]).double().view(1, 1, 1, 2).expand(6, 4, 3, 2).contiguous()
    factor = 0.73105857863 if method == "representative_batch_norm" else 1.0
    layer = build(method, 4, eps=0.03).double()
    var = 0.01 * (6 / 5 if method == "switchable_norm" else 1.0)
    y = layer(x)
    torch.testing.assert_close(y.abs().max().item(), factor * 0.1 / (var + 0.03) ** 0.5)


@pytest.mark.parametrize("method", METHODS)
def test_two_forwards_before_a_backward_keep_both_gradients(method):
    layer = build(method, 4).double()
    x = data(6, 4, 3, 3).requires_grad_()
    alone = build(method, 4).double()(x)
    (expected,) = torch.autograd.grad(alone.cos().sum(), x)
    y = layer(x)
    layer(data(6, 4, 3, 3, shift=9.0) * 5)
    (found,) = torch.autograd.grad(y.cos().sum(), x)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("method", ["switchable_norm", "representative_batch_norm", "mode_norm"])
def test_a_large_mean_costs_no_precision(method):
    # E[x²] − E[x]² in float32 would be off by some 1e-2 here
    x = data(8, 4, 6, 6, shift=3000.0)
    y = build(method, 4)(x.float())
    torch.testing.assert_close(y.double(), build(method, 4).double()(x), rtol=0, atol=1e-3)


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
