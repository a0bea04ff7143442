from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from two_sgd_steps import losses_of_two_steps

from normbench import build
from normbench.kernels.online import recurrence

FAST = {"momentum": 0.3, "gradient_momentum": 0.2}


def images(*shape):
    return torch.randn(shape or (6, 3, 4, 5), dtype=torch.float64) * 2 + 1


def step(layer, x, probe):
    """Output and gradient of Σ probe·y."""
    x = x.clone().requires_grad_()
    y = layer(x)
    (gradient,) = torch.autograd.grad((y * probe).sum(), x)
    return y.detach(), gradient


@pytest.mark.parametrize("samples", [1, 2, 3, 7, 8, 33])
def test_the_recurrence_is_that_of_a_loop(samples):
    factor, term = torch.randn(2, samples, 4, dtype=torch.float64)
    state = start = torch.randn(4, dtype=torch.float64)
    before = []
    for a, b in zip(factor, term, strict=True):
        before.append(state)
        state = a * state + b
    found, last = recurrence(factor, term, start)
    torch.testing.assert_close(found, torch.stack(before))
    torch.testing.assert_close(last, state)


@pytest.mark.parametrize("guard", ["layer_scaling", "clamp", "none"])
def test_a_batch_is_its_samples_one_after_the_other(guard):
    whole, parts = (build("online_norm", 3, guard=guard, **FAST).double() for _ in range(2))
    for _ in range(3):
        x, probe = images(), images()
        y, gradient = step(whole, x, probe)
        pieces = [step(parts, *pair) for pair in zip(x.split(1), probe.split(1), strict=True)]
        torch.testing.assert_close(y, torch.cat([piece[0] for piece in pieces]))
        torch.testing.assert_close(gradient, torch.cat([piece[1] for piece in pieces]))
    for name, buffer in whole.named_buffers():
        if name != "num_batches_tracked":
            torch.testing.assert_close(parts.get_buffer(name), buffer)


def test_a_sample_depends_on_none_after_it():
    x = images()
    changed = x.clone()
    changed[3:] += 100
    first, second = (build("online_norm", 3, **FAST).double()(v) for v in (x, changed))
    assert torch.equal(first[:3], second[:3])
    assert not torch.equal(first[4:], second[4:])


def test_the_first_sample_is_normalized_as_in_evaluation_before_it():
    layer = build("online_norm", 3, guard="none", **FAST).double()
    layer(images())
    x = images(1, 3, 4, 5)
    torch.testing.assert_close(copy.deepcopy(layer).eval()(x), layer(x))


def test_the_running_averages_tend_to_mean_and_variance_of_the_data():
    layer = build("online_norm", 3, momentum=0.005).double()
    for _ in range(200):
        layer(images(20, 3, 2, 2))
    torch.testing.assert_close(layer.running_mean, torch.ones(3).double(), atol=0.2, rtol=0)
    torch.testing.assert_close(layer.running_var, torch.full((3,), 4.0).double(), atol=0.5, rtol=0)


def test_without_space_the_variance_is_that_of_the_values_over_time():
    layer = build("online_norm", 3, momentum=0.005).double()
    for _ in range(200):
        layer(images(20, 3))
    torch.testing.assert_close(layer.running_var, torch.full((3,), 4.0).double(), atol=0.8, rtol=0)


def test_in_the_long_run_the_gradient_loses_its_parts_along_one_and_along_the_output():
    layer = build("online_norm", 3, guard="none", momentum=1e-9).double()
    x, probe = images(1, 3, 4, 5), images(1, 3, 4, 5)
    x -= x.mean((2, 3), keepdim=True)
    first = step(layer, x, probe)[1]
    for _ in range(6000):
        _, gradient = step(layer, x, probe)
    for direction in (torch.ones_like(x), x):
        assert first.mul(direction).mean((2, 3)).abs().max() > 0.05
        assert gradient.mul(direction).mean((2, 3)).abs().max() < 1e-4


@pytest.mark.parametrize("training", [True, False])
def test_layer_scaling_leaves_every_sample_a_root_mean_square_of_one(training):
    y = build("online_norm", 3, eps=1e-12).double().train(training)(images() * 50)
    torch.testing.assert_close(y.square().mean((1, 2, 3)), torch.ones(6).double())


@pytest.mark.parametrize("training", [True, False])
def test_the_clamp_is_at_five(training):
    y = build("online_norm", 3, guard="clamp").double().train(training)(images() * 50)
    assert y.abs().max() == 5


def test_in_evaluation_the_gradient_is_exact_and_the_control_stays():
    layer = build("online_norm", 3, **FAST).double()
    step(layer, images(), images())
    u, v = layer.control_u.clone(), layer.control_v.clone()
    assert u.abs().min() > 0
    assert torch.autograd.gradcheck(layer.eval(), images(2, 3, 2, 2).requires_grad_())
    assert torch.equal(u, layer.control_u)
    assert torch.equal(v, layer.control_v)


def test_compiled_the_state_of_the_backward_is_the_same_over_several_steps():
    torch.compiler.reset()
    layer = build("online_norm", 4, **FAST)
    compiled = torch.compile(copy.deepcopy(layer), backend="aot_eager", fullgraph=True)
    for _ in range(4):
        x, probe = torch.randn(2, 3, 4, 5, 5)
        for found, expected in zip(step(compiled, x, probe), step(layer, x, probe), strict=True):
            torch.testing.assert_close(found, expected)
        torch.testing.assert_close(dict(compiled._orig_mod.state_dict()), dict(layer.state_dict()))


def test_a_large_batch_in_float32_is_that_in_float64():
    x, probe = images(256, 3, 4, 4), images(256, 3, 4, 4)
    expected = step(build("online_norm", 3).double(), x, probe)
    found = step(build("online_norm", 3), x.float(), probe.float())
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("architecture", ["test_resnet", "test_efficientnet"])
def test_a_timm_model_trains(architecture):
    _, losses = losses_of_two_steps(architecture, "online_norm")
    assert np.isfinite(losses).all()
