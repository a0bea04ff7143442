"""Methods that reparametrize the weights of convolutions one by one."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import timm
import timm.layers
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import normbench
from normbench import build, registry
from normbench.methods.scaled_ws import GAMMAS

CONVS = [
    nn.Conv1d(3, 4, 3),
    nn.Conv2d(3, 4, 3),
    nn.Conv2d(4, 4, 3, groups=4),
    nn.Conv3d(2, 4, 2),
]
METHODS = ["weight_norm", "weight_standardization_bn", "scaled_ws"]


def taken_over(conv, method, **params):
    weight_side = registry.get(method).weight
    assert weight_side is not None
    assert weight_side(conv, **registry.resolve_params(method, params)) is None
    return conv


def two_steps(model, x, lr=0.01):
    """Losses of two steps of SGD."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    losses = []
    for _ in range(2):
        loss = nn.functional.cross_entropy(model(x), torch.arange(len(x)) % 10)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("network", ["test_resnet", "test_efficientnet"])
@pytest.mark.parametrize("method", [*METHODS, "weight_norm(mean_only=True)"])
def test_timm_models_train(network, method):
    name, params = registry.parse_variant(method)
    model = timm.create_model(network, num_classes=10)
    report = normbench.swap(model, name, **params)
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert report.replaced == report.found
    assert report.weight_side == len(convolutions)
    assert np.isfinite(two_steps(model, torch.randn(4, 3, 64, 64))).all()


@pytest.mark.parametrize("method", METHODS)
def test_another_swap_gives_the_weights_back(method):
    model = timm.create_model("test_resnet", num_classes=10)
    names = list(model.state_dict())
    weights = {n: p.clone() for n, p in model.named_parameters() if "conv" in n}
    normbench.swap(model, method)
    normbench.swap(model, "batch_norm")
    assert list(model.state_dict()) == names
    assert all(torch.equal(model.get_parameter(n), weight) for n, weight in weights.items())


@pytest.mark.parametrize("conv", CONVS, ids=repr)
def test_weight_norm_is_torchs(conv):
    ours = taken_over(copy.deepcopy(conv).double(), "weight_norm")
    theirs = parametrizations.weight_norm(copy.deepcopy(conv).double())
    g, v = torch.rand(4, dtype=torch.float64) + 0.5, torch.randn_like(conv.weight).double()
    parts = ours.parametrizations.weight
    with torch.no_grad():
        parts[0].g.copy_(g)
        parts.original.copy_(v)
        theirs.parametrizations.weight.original0.copy_(g.view(-1, *[1] * (v.dim() - 1)))
        theirs.parametrizations.weight.original1.copy_(v)
    torch.testing.assert_close(ours.weight, theirs.weight)
    probe = torch.randn_like(v)
    mine = torch.autograd.grad((ours.weight * probe).sum(), [parts[0].g, parts.original])
    others = torch.autograd.grad(
        (theirs.weight * probe).sum(), list(theirs.parametrizations.weight.parameters())
    )
    torch.testing.assert_close(mine[0], others[0].flatten())
    torch.testing.assert_close(mine[1], others[1])


def test_weight_norm_starts_as_the_models_own_weight():
    conv = nn.Conv2d(3, 4, 3)
    weight = conv.weight.detach().clone()
    torch.testing.assert_close(taken_over(conv, "weight_norm").weight.detach(), weight)


def test_the_gradient_of_v_is_orthogonal_to_it():
    conv = taken_over(nn.Conv2d(3, 4, 3).double(), "weight_norm")
    conv(torch.randn(2, 3, 5, 5).double()).cos().sum().backward()
    v = conv.parametrizations.weight.original
    torch.testing.assert_close((v * v.grad).flatten(1).sum(1), torch.zeros(4).double())


def test_a_filter_of_zeros_stays_zeros_without_a_nan():
    conv = nn.Conv2d(2, 1, 3)
    nn.init.zeros_(conv.weight)
    taken_over(conv, "weight_norm")
    conv(torch.randn(2, 2, 5, 5)).sum().backward()
    assert conv.weight.abs().max() == 0
    assert all(torch.isfinite(p.grad).all() for p in conv.parameters())


def test_the_first_batch_comes_out_standardized_and_later_ones_by_its_statistics():
    layer = build("weight_norm", 4)
    first, second = torch.randn(2, 8, 4, 5, 5) * 3 + 2
    y = layer(first)
    torch.testing.assert_close(y.mean((0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.var((0, 2, 3), correction=0), torch.ones(4), atol=1e-4, rtol=0)
    mean, std = first.mean((0, 2, 3), keepdim=True), first.std((0, 2, 3), False, keepdim=True)
    torch.testing.assert_close(layer(second), (second - mean) / std, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(layer.eval()(second), (second - mean) / std, rtol=1e-4, atol=1e-4)


def test_the_initialisation_carries_no_gradient():
    layer = build("weight_norm", 4)
    x = (torch.randn(8, 4, 5, 5) * 3).requires_grad_()
    layer(x).sum().backward()
    expected = 1 / x.detach().std((0, 2, 3), False, keepdim=True)
    torch.testing.assert_close(x.grad, expected.expand_as(x), rtol=1e-4, atol=1e-5)


def test_a_trained_batch_norm_is_the_same_function_in_evaluation_and_not_initialised_anew():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    for _ in range(20):
        model(torch.randn(16, 3, 6, 6) * 2 + 1)
    x = torch.randn(2, 3, 6, 6)
    before = model.eval()(x)
    normbench.swap(model, "weight_norm", example_input=x)
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.train()(x), before, rtol=1e-4, atol=1e-5)


def test_two_forwards_before_the_backward_work_from_the_start():
    layer = build("weight_norm", 4)
    x = torch.randn(4, 4, 5, 5, requires_grad=True)
    (layer(x) + layer(2 * x)).square().sum().backward()
    assert torch.isfinite(x.grad).all()


def test_mean_only_has_batch_norms_mean_and_not_its_variance():
    layer = build("weight_norm", 4, mean_only=True, data_init=False, eps=1e-12)
    x = torch.randn(8, 4, 5, 5) * 3 + 2
    torch.testing.assert_close(layer(x), x - x.mean((0, 2, 3), keepdim=True))
    torch.testing.assert_close(layer.running_mean, 0.1 * x.mean((0, 2, 3)))
    torch.testing.assert_close(layer.running_var, torch.ones(4))


def test_weight_norm_refuses_a_single_value():
    with pytest.raises(ValueError, match="values per channel"):
        build("weight_norm", 4)(torch.randn(1, 4, 1, 1))


def test_ws_with_batch_norm_is_both():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    twin = copy.deepcopy(model)
    x = torch.randn(4, 3, 8, 8)
    normbench.swap(model, "weight_standardization_bn", example_input=x)
    taken_over(twin[0], "weight_standardization", groups=1)
    torch.testing.assert_close(model(x), twin(x))


@pytest.mark.parametrize("nonlinearity", ["relu", "silu"])
def test_scaled_ws_is_timms_layer(nonlinearity):
    theirs = timm.layers.ScaledStdConv2d(16, 8, 3, padding=1, gamma=GAMMAS[nonlinearity])
    ours = nn.Conv2d(16, 8, 3, padding=1)
    ours.load_state_dict(theirs.state_dict(), strict=False)
    taken_over(ours, "scaled_ws", nonlinearity=nonlinearity)
    gain = torch.rand(8) + 0.5
    with torch.no_grad():
        theirs.gain.copy_(gain.view(-1, 1, 1, 1))
        ours.parametrizations.weight[0].gain.copy_(gain)
    x = torch.randn(2, 16, 8, 8)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-3, atol=1e-3)  # eps differs


def test_scaled_weights_have_mean_0_and_norm_gamma():
    conv = taken_over(nn.Conv2d(16, 8, 3), "scaled_ws", nonlinearity="identity")
    rows = conv.weight.flatten(1)
    torch.testing.assert_close(rows.mean(1), torch.zeros(8), atol=1e-6, rtol=0)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(8))


def test_equal_weights_give_zeros_and_a_finite_gradient():
    conv = nn.Conv2d(2, 1, 3)
    nn.init.constant_(conv.weight, 0.5)
    taken_over(conv, "scaled_ws")
    conv.weight.square().sum().backward()
    assert conv.weight.abs().max() == 0
    assert torch.isfinite(conv.parametrizations.weight.original.grad).all()


def test_the_floor_is_the_authors():
    conv = nn.Conv2d(4, 1, 1, bias=False).double()
    with torch.no_grad():
        conv.weight.copy_(1e-3 * torch.tensor([1.0, -1.0, 1.0, -1.0]).view(1, 4, 1, 1))
    expected = conv.weight.detach() / 1e-2  # sqrt(1e-4), as σ²·fan_in is 4e-6
    taken_over(conv, "scaled_ws", nonlinearity="identity")
    torch.testing.assert_close(conv.weight.detach(), expected)


@pytest.mark.parametrize("name", sorted(set(GAMMAS) - {"identity"}))
def test_gammas_keep_the_variance_of_a_normal_input(name):
    act = timm.layers.get_act_layer(name)()
    xi, h = np.linspace(-12, 12, 200_001, retstep=True)
    density = np.exp(-xi * xi / 2) / np.sqrt(2 * np.pi) * h
    phi = GAMMAS[name] * act(torch.from_numpy(xi.copy())).numpy()
    assert (phi**2 * density).sum() - (phi * density).sum() ** 2 == pytest.approx(1, rel=5e-3)


def test_scaled_ws_leaves_slots_without_statistics():
    layer = build("scaled_ws", 4)
    x = torch.randn(1, 4, 1, 1)
    assert torch.equal(layer(x), x)
    assert not list(layer.buffers())


@pytest.mark.parametrize("method", METHODS)
def test_compiled_convolutions_are_the_same(method):
    torch.compiler.reset()
    conv = taken_over(nn.Conv2d(3, 4, 3), method)
    x = torch.randn(2, 3, 6, 6)
    compiled = torch.compile(conv, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), conv(x))
    assert parametrize.is_parametrized(conv)


@pytest.mark.parametrize("method", [*METHODS, "fixup"])
def test_a_frozen_convolution_stays_frozen(method):
    conv = nn.Conv2d(3, 4, 3).requires_grad_(False)
    weight_side = registry.get(method).weight
    assert weight_side is not None
    conv = weight_side(conv, **registry.resolve_params(method)) or conv
    assert not any(p.requires_grad for p in conv.parameters())
