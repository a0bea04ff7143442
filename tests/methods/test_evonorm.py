from __future__ import annotations

import pytest
import timm
import timm.layers
import torch
from torch import nn

import normbench
from normbench import build

C = 8
TIMMS = {"evonorm_s0": timm.layers.EvoNorm2dS0, "evonorm_b0": timm.layers.EvoNorm2dB0}


def pair(method, act, **params):
    """Ours and timm's with the same parameters, away from their start, in float64."""
    ours = build(method, C, act=act, **params).double()
    with torch.no_grad():
        for p in ours.parameters():
            p += 0.3 * torch.randn_like(p)
    theirs = TIMMS[method](C, apply_act=act is not None, **params).double()
    theirs.load_state_dict(ours.state_dict(), strict=False)
    return ours, theirs


@pytest.mark.parametrize("act", [None, nn.ReLU()], ids=["plain", "act"])
@pytest.mark.parametrize("method", ["evonorm_s0", "evonorm_b0"])
def test_output_gradients_and_running_variance_are_timms(method, act):
    params = {"groups": 4} if method == "evonorm_s0" else {"momentum": 0.3}
    ours, theirs = pair(method, act, eps=1e-3, **params)
    for training in (True, True, False):
        x, probe = torch.randn(2, 3, C, 5, 3).double()
        results = []
        for layer in (ours.train(training), theirs.train(training)):
            leaf = x.clone().requires_grad_()
            y = layer(leaf)
            inputs = [leaf, *(p for _, p in sorted(layer.named_parameters()))]
            gradients = torch.autograd.grad(y, inputs, probe)
            results.append((y, *gradients, getattr(layer, "running_var", None)))
        # timm's deviations are float32
        torch.testing.assert_close(results[0][:-1], results[1][:-1], rtol=1e-5, atol=1e-5)
        if ours.v is not None and method == "evonorm_b0":
            torch.testing.assert_close(results[0][-1], results[1][-1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["evonorm_s0", "evonorm_b0"])
def test_without_an_activation_it_is_affine_and_has_no_state(method):
    layer = build(method, C)
    x = torch.randn(3, C, 5, 5)
    assert torch.equal(layer(x), x)
    assert sorted(layer.state_dict()) == ["bias", "weight"]


@pytest.mark.parametrize("method", ["evonorm_s0", "evonorm_b0"])
def test_any_activation_is_replaced_by_the_layers_own(method):
    x = torch.randn(3, C, 5, 5)
    y = [build(method, C, act=act)(x) for act in (nn.ReLU(), nn.Hardswish())]
    assert torch.equal(*y)


def test_b0_with_v_zero_in_one_sample_is_a_division_by_the_deviation():
    layer = build("evonorm_b0", C, act=nn.ReLU())
    nn.init.zeros_(layer.v)
    x = torch.randn(1, C, 9, 9)
    expected = x / (x.var((2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(layer(x), expected)


def test_b0_of_1x1_maps_has_an_instance_deviation_of_root_eps():
    layer = build("evonorm_b0", C, act=nn.ReLU(), eps=0.25)
    x = torch.randn(6, C)
    expected = x / torch.maximum((x.var(0, correction=0) + 0.25).sqrt(), x + 0.5)
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer(x[:, :, None, None]), expected[:, :, None, None])


def test_b0_refuses_to_train_on_one_value_per_channel_and_keeps_its_state():
    layer = build("evonorm_b0", C, act=nn.ReLU())
    with pytest.raises(ValueError, match="values per channel"):
        layer(torch.randn(1, C, 1, 1))
    assert int(layer.num_batches_tracked) == 0
    assert torch.isfinite(layer.eval()(torch.randn(1, C, 1, 1))).all()


def test_b0_depends_on_the_batch_in_training_only():
    layer, x = build("evonorm_b0", C, act=nn.ReLU()), torch.randn(4, C, 5, 5)
    assert not torch.allclose(layer(x)[:1], layer(x[:1]))
    torch.testing.assert_close(layer.eval()(x)[:1], layer(x[:1]))


def test_s0_depends_on_no_other_sample():
    layer, x = build("evonorm_s0", C, act=nn.ReLU()), torch.randn(4, C, 5, 5)
    torch.testing.assert_close(layer(x)[:1], layer(x[:1]))


@pytest.mark.parametrize(("channels", "used"), [(64, 32), (48, 24), (37, 1)])
def test_s0_groups_are_the_largest_divisor_not_above_32(channels, used):
    layer = build("evonorm_s0", channels, act=nn.ReLU())
    assert layer.groups == used
    assert f"groups={used}" in repr(layer)
    x = torch.randn(2, channels, 3, 3)
    theirs = timm.layers.EvoNorm2dS0(channels, groups=used)
    torch.testing.assert_close(layer(x), theirs(x))


def test_s0_refuses_a_group_of_one_value():
    with pytest.raises(ValueError, match="values per channel"):
        build("evonorm_s0", C, act=nn.ReLU())(torch.randn(4, C, 1, 1))
    y = build("evonorm_s0", C, act=nn.ReLU(), groups=2)(torch.randn(4, C, 1, 1))
    assert torch.isfinite(y).all()


def test_s0_does_not_centre():
    # a constant added to x moves the deviation by nothing: y follows silu(x + 5), not silu(x)
    x = torch.randn(2, C, 9, 9)
    layer = build("evonorm_s0", C, act=nn.ReLU())
    deviation = x.var((2, 3), correction=0, keepdim=True).add(1e-5).sqrt()
    torch.testing.assert_close(layer(x + 5), nn.functional.silu(x + 5) / deviation)


@pytest.mark.parametrize("method", ["evonorm_s0", "evonorm_b0"])
def test_a_later_swap_has_the_activations_back(method):
    model = timm.create_model("test_resnet", num_classes=10)
    plain = timm.create_model("test_resnet", num_classes=10)
    plain.load_state_dict(model.state_dict())
    report = normbench.swap(model, method)
    with_v = [m for m in model.modules() if getattr(m, "v", None) is not None]
    assert len(with_v) == report.consumed_activations > 0
    normbench.swap(model, "group_norm")
    normbench.swap(plain, "group_norm")
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model(x), plain(x))
