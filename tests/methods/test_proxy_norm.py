from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
import torch
from checks import TOLERANCE, assert_gradients, forward, set_parameters
from oracles import norms
from torch import nn

from normbench import build
from normbench.kernels import proxy

C = 4
NAMES = ("weight", "bias", "proxy_weight", "proxy_bias")
ACTS = {"relu": (nn.ReLU(), norms.relu), "silu": (nn.SiLU(), norms.silu)}


def parameters(rng):
    means = (1, 0.2, 0.1, 0)
    return {n: rng.normal(m, 0.3, C) for n, m in zip(NAMES, means, strict=True)}


@pytest.mark.parametrize("act", sorted(ACTS))
@pytest.mark.parametrize("groups", [1, 2])
def test_output_follows_the_paper(rng, act, groups):
    module, function = ACTS[act]
    values = parameters(rng)
    layer = set_parameters(build("proxy_norm", C, act=module, groups=groups, eps=1e-3), **values)
    x = rng.normal(1, 2, (2, C, 3, 3))
    expected = norms.proxy_norm(x, tuple(values.values()), function, groups, 1e-3, 0.03)
    for training in (True, False):
        np.testing.assert_allclose(forward(layer.train(training), x), expected, **TOLERANCE)


@pytest.mark.parametrize("act", sorted(ACTS))
def test_all_five_gradients(rng, act):
    module, function = ACTS[act]
    values = parameters(rng)
    layer = set_parameters(build("proxy_norm", C, act=module), **values)

    def oracle(x, **p):
        return norms.proxy_norm(x, tuple(p[n] for n in NAMES), function, 1, 1e-5, 0.03)

    assert_gradients(layer, oracle, rng.normal(size=(2, C, 2, 2)), **values)


WRITTEN = [nn.ReLU(), nn.SiLU(), nn.Hardswish(), nn.GELU(), nn.GELU("tanh")]


@pytest.mark.parametrize("act", WRITTEN, ids=repr)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_written_backward_is_autograds(rng, act, layout):
    values = parameters(rng)
    written = set_parameters(build("proxy_norm", C, act=act, groups=2), **values)
    wrapped = set_parameters(build("proxy_norm", C, act=nn.Sequential(act), groups=2), **values)
    x, probe = (torch.from_numpy(rng.normal(size=(3, C, 5, 4))) for _ in range(2))
    x = x.contiguous(memory_format=layout).requires_grad_()
    results = []
    for layer in (written, wrapped):
        y = layer(x)
        leaves = [x, *(layer.get_parameter(name) for name in NAMES)]
        results.append((y, *torch.autograd.grad(y, leaves, probe)))
    torch.testing.assert_close(results[0], results[1])


def test_every_activation_with_a_written_backward_is_tested_above():
    assert {type(act) for act in WRITTEN} == set(proxy.WRITTEN)


@pytest.mark.parametrize("act", [nn.ReLU(), nn.SiLU()])
def test_odd_strides_of_input_and_gradient_change_nothing(rng, act):
    layer = set_parameters(build("proxy_norm", C, act=act), **parameters(rng))
    x = torch.from_numpy(rng.normal(size=(3, 5, 2 * C, 4)))[..., ::2, :].transpose(1, 2)
    results = []
    for given in (x, x.contiguous()):
        leaf = given.detach().requires_grad_()
        y = layer(leaf)
        y.mean((2, 3)).square().sum().backward()  # mean's gradient is an expanded tensor
        results.append((y, leaf.grad))
    torch.testing.assert_close(results[0], results[1])


def test_a_second_derivative_is_refused():
    x = torch.randn(2, C, 3, 3, requires_grad=True)
    y = build("proxy_norm", C, act=nn.ReLU())(x)
    (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize(("a", "b"), [(1.0, 0.0), (0.3, 1.2), (-2.0, -0.5), (0.5, -3.0)])
def test_relu_moments_in_closed_form_are_the_integrals(a, b):
    xi, h = np.linspace(-12, 12, 400_001, retstep=True)
    density = np.exp(-xi * xi / 2) / np.sqrt(2 * np.pi) * h
    phi = np.maximum(a * xi + b, 0)
    mean = (phi * density).sum()
    var = (phi**2 * density).sum() - mean**2
    found = proxy.relu_moments(torch.tensor(a).double(), torch.tensor(b).double())
    np.testing.assert_allclose([float(v) for v in found], [mean, var], atol=1e-8)


def test_relu_moments_of_the_standard_normal():
    mean, var = proxy.relu_moments(torch.tensor(1.0).double(), torch.tensor(0.0).double())
    assert mean.item() == pytest.approx(1 / np.sqrt(2 * np.pi))
    assert var.item() == pytest.approx(0.5 - 1 / (2 * np.pi))


def test_a_zero_gamma_leaves_exact_relu_moments_finite_with_gradient():
    a = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    mean, var = proxy.relu_moments(a, torch.tensor([0.7]).double())
    (mean + var).sum().backward()
    assert (mean.item(), var.item()) == pytest.approx((0.7, 0.0))
    assert torch.isfinite(a.grad).all()  # type: ignore[arg-type]


def test_quantiles_are_the_normals_midpoints():
    expected = [NormalDist().inv_cdf((k + 0.5) / 200) for k in range(200)]
    np.testing.assert_allclose(proxy.quantiles().squeeze(1), expected, rtol=1e-12)


def test_hermite_rule_integrates_silu_to_seven_digits():
    nodes, weights = proxy.hermite()
    xi, h = np.linspace(-12, 12, 400_001, retstep=True)
    exact = (norms.silu(xi) * np.exp(-xi * xi / 2) / np.sqrt(2 * np.pi)).sum() * h
    assert (weights * torch.nn.functional.silu(nodes)).sum().item() == pytest.approx(
        exact, abs=2e-7
    )


@pytest.mark.parametrize("act", sorted(ACTS))
def test_quantiles_and_exact_moments_agree_within_a_hundredth_but_differ(act):
    x = torch.randn(4, C, 8, 8)
    coarse = build("proxy_norm", C, act=ACTS[act][0])(x)
    exact = build("proxy_norm", C, act=ACTS[act][0], exact=True)(x)
    torch.testing.assert_close(coarse, exact, rtol=1e-2, atol=5e-3)
    assert not torch.allclose(coarse, exact, atol=1e-4)


def test_gaussian_channels_come_out_with_mean_0_and_variance_1():
    # the point of the proxy: where y is standard normal, so is the normalization of φ(y)
    x = torch.randn(64, C, 32, 32)
    y = build("proxy_norm", C, act=nn.ReLU(), exact=True, proxy_eps=1e-9)(x)
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(C), atol=0.02, rtol=0)
    torch.testing.assert_close(y.var((0, 2, 3)), torch.ones(C), atol=0.03, rtol=0)


def test_without_activation_the_scale_stays_and_the_shift_goes(rng):
    gamma = rng.normal(1, 0.3, C)
    layer = set_parameters(build("proxy_norm", C), weight=gamma)
    x = rng.normal(size=(2, C, 3, 3))
    expected = norms.group_norm(x, gamma, np.zeros(C), 1, 1e-5)
    np.testing.assert_allclose(forward(layer, x), expected, **TOLERANCE)
    assert [name for name, _ in layer.named_parameters()] == ["weight"]


def test_an_activation_in_place_gives_the_same():
    x = torch.randn(2, C, 5, 5, requires_grad=True)
    inplace = build("proxy_norm", C, act=nn.ReLU(inplace=True))
    y = inplace(x)
    torch.testing.assert_close(y, build("proxy_norm", C, act=nn.ReLU())(x))
    y.sum().backward()


def test_an_activation_with_parameters_gets_their_gradient_through_the_proxy_too():
    act = nn.PReLU(C)
    build("proxy_norm", C, act=act)(torch.randn(2, C, 5, 5)).square().sum().backward()
    assert act.weight.grad is not None
    assert act.weight.grad.abs().min() > 0


@pytest.mark.parametrize("exact", [False, True])
def test_the_moments_are_float32_under_autocast(exact):
    layer = build("proxy_norm", C, act=nn.SiLU(), exact=exact)
    x = torch.randn(2, C, 3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer(x), layer(x.float()))
        half = layer(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, layer(x.bfloat16().float()).bfloat16())
