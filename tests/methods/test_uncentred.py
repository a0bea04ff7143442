"""mabn and power_norm: no mean, and a backward that follows running statistics."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import timm
import torch
from oracles.formulas import ORACLES, At
from torch import nn
from two_sgd_steps import losses_of_two_steps

import normbench
from normbench import build, registry

METHODS = ["mabn", "power_norm"]
AT_ONCE = {
    "mabn": {"buffer_size": 2, "warmup": 0, "hold": 0},
    "power_norm": {"warmup": 0},
}


def images(*shape):
    return torch.randn(shape or (4, 3, 5, 2), dtype=torch.float64) * 2 + 1


@pytest.mark.parametrize(
    ("method", "given"),
    [
        ("mabn", {"buffer_size": 3, "warmup": 6, "hold": 9, "rmax": 1.05}),
        ("power_norm", {"warmup": 5}),
    ],
)
def test_many_steps_through_warm_up_and_beyond_follow_the_paper(method, given):
    layer = build(method, 3, **given).double()
    params, formula = registry.resolve_params(method, given), ORACLES[method].formula
    for step in range(1, 14):
        state = {n: t.detach().clone() for n, t in layer.state_dict().items()}
        x = images()
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        probe = torch.randn_like(a)
        y = layer(a)
        expected, moved = formula(b, At(state, params, None, True, {}))
        (y * probe).sum().backward()
        (expected * probe).sum().backward()
        torch.testing.assert_close(y, expected, msg=f"y of step {step}")
        torch.testing.assert_close(a.grad, b.grad, msg=f"gradient of step {step}")
        for name, value in moved.items():
            torch.testing.assert_close(layer.get_buffer(name), value, msg=f"{name}, step {step}")


def test_mabn_starts_as_batch_norm_without_a_mean_in_output_and_gradient():
    x = images().requires_grad_()
    plain = x.detach().clone().requires_grad_()
    expected = plain / (plain.square().mean((0, 2, 3), keepdim=True) + 1e-5).sqrt()
    y = build("mabn", 3).double()(x)
    torch.testing.assert_close(y, expected)
    y.cos().sum().backward()
    expected.cos().sum().backward()
    torch.testing.assert_close(x.grad, plain.grad)


def test_mabn_averages_over_the_buffer_and_forgets_what_is_older():
    layer = build("mabn", 3, buffer_size=2, warmup=0).double()
    batches = [images() * scale for scale in (10, 1, 2, 3)]
    for x in batches:
        y = layer(x)
    squares = torch.stack([x.square().mean((0, 2, 3)) for x in batches[2:]]).mean(0)
    torch.testing.assert_close(y, batches[-1] / (squares + 1e-5).sqrt().view(1, -1, 1, 1))


@pytest.mark.parametrize("method", METHODS)
def test_past_the_warm_up_and_unclipped_training_is_evaluation_before_the_update(method):
    given = AT_ONCE[method] | ({"rmax": 1e9} if method == "mabn" else {})
    layer = build(method, 3, **given).double()
    for _ in range(3):
        layer(images())
    x = images() * 5
    torch.testing.assert_close(copy.deepcopy(layer).eval()(x), layer(x))


@pytest.mark.parametrize(("scale", "r"), [(1e6, 5.0), (1e-2, 0.2)])
def test_mabns_r_is_clipped(scale, r):
    layer = build("mabn", 3, buffer_size=1, warmup=0, hold=0, eps=1e-12).double()
    y = layer(images() * scale)  # the running value is 1 still
    torch.testing.assert_close(y.square().mean((0, 2, 3)), torch.full((3,), r**2).double())


@pytest.mark.parametrize("method", METHODS)
def test_in_the_long_run_the_gradient_loses_its_part_along_the_output(method):
    layer = build(method, 3, **AT_ONCE[method]).double()
    x, probe = images().requires_grad_(), torch.randn(4, 3, 5, 2).double()
    for _ in range(400):
        (gradient,) = torch.autograd.grad((layer(x) * probe).sum(), x)
    assert probe.mul(x).mean((0, 2, 3)).abs().min() > 0.01
    assert gradient.mul(x).mean((0, 2, 3)).abs().max() < 1e-5


def test_power_norms_first_batch_leaves_nothing_of_the_initial_value():
    x = images()
    layer = build("power_norm", 3).double()
    layer(x)
    torch.testing.assert_close(layer.running_square, x.square().mean((0, 2, 3)))


@pytest.mark.parametrize("method", METHODS)
def test_compiled_the_state_of_the_backward_is_the_same_over_several_steps(method):
    torch.compiler.reset()
    layer = build(method, 4, **AT_ONCE[method])
    compiled = torch.compile(copy.deepcopy(layer), backend="aot_eager", fullgraph=True)
    for _ in range(5):
        x = torch.randn(3, 4, 5, 5)
        a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
        layer(a).cos().sum().backward()
        compiled(b).cos().sum().backward()
        torch.testing.assert_close(a.grad, b.grad)
        torch.testing.assert_close(dict(compiled._orig_mod.state_dict()), dict(layer.state_dict()))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(1, 4), (1, 4, 1, 1)], ids=str)
def test_a_single_value_is_scaled_to_its_sign(method, shape):
    x = torch.randn(shape, dtype=torch.float64)
    y = build(method, 4, eps=1e-12).double()(x)
    torch.testing.assert_close(y, x.sign())


@pytest.mark.parametrize("method", METHODS)
def test_eps_is_inside_the_root(method):
    y = build(method, 2, eps=3.0).double()(torch.ones(4, 2, 3, 3).double())
    torch.testing.assert_close(y, torch.full_like(y, 0.5))


@pytest.mark.parametrize("conv", [nn.Conv1d(3, 4, 3), nn.Conv2d(4, 4, 3, groups=4),
                                  nn.Conv2d(8, 4, 1), nn.Conv3d(2, 4, 2)], ids=repr)  # fmt: skip
def test_mabn_centres_every_filter(conv):
    conv = copy.deepcopy(conv)
    learned = conv.weight.detach().clone()
    assert registry.get("mabn").weight(conv) is None
    means = conv.weight.flatten(1).mean(1)
    torch.testing.assert_close(means, torch.zeros_like(means))
    offsets = (learned - conv.weight).flatten(1)
    torch.testing.assert_close(offsets, offsets[:, :1].expand_as(offsets))


def test_mabn_leaves_filters_of_a_single_number_alone():
    conv = nn.Conv2d(4, 4, 1, groups=4)
    registry.get("mabn").weight(conv)
    assert not nn.utils.parametrize.is_parametrized(conv)


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_norms_averages_are_not_taken_for_mean_squares(method):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    model(torch.randn(8, 3, 6, 6) * 9)
    normbench.swap(model, method, example_input=torch.randn(2, 3, 6, 6))
    assert torch.equal(model[1].running_square, torch.ones(4))
    assert model[1].num_batches_tracked == 0


@pytest.mark.parametrize(
    ("method", "given", "name", "share"),
    [
        ("mabn", {"buffer_size": 2, "warmup": 4}, "mabn_averaged_share", 0.4),
        ("mabn", {"buffer_size": 4, "warmup": 0}, "mabn_averaged_share", 0.2),
        ("power_norm", {"warmup": 3}, "power_norm_running_share", 0.4),
    ],
)
def test_the_share_of_steps_past_the_warm_up_is_observed(method, given, name, share):
    model = nn.Sequential(build(method, 3, **given))
    observe = registry.get(method).observe
    assert observe is not None
    assert observe(model) == {name: 0.0}
    for _ in range(5):
        model(torch.randn(2, 3, 4, 4))
    assert observe(model) == {name: pytest.approx(share)}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("architecture", ["test_resnet", "test_efficientnet"])
def test_a_timm_model_trains(architecture, method):
    model, losses = losses_of_two_steps(architecture, method, **AT_ONCE[method])
    assert np.isfinite(losses).all()
    counted = [m.num_batches_tracked for m in model.modules() if hasattr(m, "running_square")]
    assert set(map(int, counted)) == {3}


def test_in_a_model_mabn_centres_the_convolutions():
    model = timm.create_model("test_resnet", num_classes=10)
    report = normbench.swap(model, "mabn")
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert report.weight_side == len(convs)
    assert all(c.weight.flatten(1).mean(1).abs().max() < 1e-6 for c in convs)
