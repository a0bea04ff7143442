"""Methods that mix or pool batch, instance and layer statistics: limits, decisions, edges."""

from __future__ import annotations

import pytest
import timm
import torch
from beside_torch import agree, data, with_values
from torch import nn

import normbench
from normbench import build

METHODS = [
    "switchable_norm", "ibn_a", "batch_group_norm", "representative_batch_norm",
    "variance_only_batch_norm", "mode_norm", "extended_batch_norm", "mean_only_batch_norm",
]  # fmt: skip
SHAPES = [(6, 8, 5, 4), (6, 8, 7), (6, 8, 3, 2, 2)]


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
