from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

import normbench
from normbench import build, registry
from normbench.methods.cross_iteration_bn import CrossIterationBN

EPS = 1e-5


def pair(**params):
    """A convolution and the layer that knows it, in float64."""
    conv = nn.Conv2d(3, 4, 3, padding=1, bias=False).double()
    layer = build("cross_iteration_bn", 4, **params).double()
    layer.follow(conv)
    return conv, layer


def terms(z, weight, then):
    """μ and ν of a batch of inputs at `weight`, to first order around `then`, patch by patch."""
    patches = F.unfold(z, 3, padding=1).transpose(1, 2).flatten(0, 1)
    rows, old = weight.flatten(1), then.flatten(1)
    y = patches @ old.T
    d_mu = patches.mean(0).expand_as(old)
    d_nu = 2 * (y.T @ patches) / len(patches)
    step = rows - old
    return y.mean(0) + (d_mu * step).sum(1), y.square().mean(0) + (d_nu * step).sum(1)


def paper(z, weight, history, gamma, beta):
    """The paper's equations: the present batch with its gradient, those of the past without."""
    x = F.conv2d(z, weight, padding=1)
    mus, nus = [x.mean((0, 2, 3))], [x.square().mean((0, 2, 3))]
    for earlier, then in history:
        mu, nu = terms(earlier, weight.detach(), then)
        mus.append(mu)
        nus.append(torch.maximum(nu, mu.square()))
    mu, nu = torch.stack(mus).mean(0), torch.stack(nus).mean(0)
    y = (x - mu.view(1, -1, 1, 1)) / (nu - mu.square() + EPS).sqrt().view(1, -1, 1, 1)
    return gamma.view(1, -1, 1, 1) * y + beta.view(1, -1, 1, 1)


@pytest.mark.parametrize("step_size", [0.02, 1.0])
@pytest.mark.parametrize("buffer", [1, 3])
def test_output_and_gradients_follow_the_paper(buffer, step_size):
    torch.manual_seed(0)
    conv, layer = pair(buffer=buffer)
    history, clipped = [], False
    for _ in range(buffer + 3):
        z, probe = torch.randn(2, 3, 5, 5).double() + 0.5, torch.randn(2, 4, 5, 5).double()
        leaves = [conv.weight, layer.weight, layer.bias]
        theirs = [leaf.detach().clone().requires_grad_() for leaf in leaves]
        y = layer(conv(z))
        expected = paper(z, theirs[0], history, theirs[1], theirs[2])
        torch.testing.assert_close(y, expected)
        found = torch.autograd.grad(y, leaves, probe)
        for ours, other in zip(found, torch.autograd.grad(expected, theirs, probe), strict=True):
            torch.testing.assert_close(ours, other)
        for earlier, then in history:
            mu, nu = terms(earlier, conv.weight.detach(), then)
            clipped = clipped or bool((nu < mu.square()).any())
        history = [(z, conv.weight.detach().clone()), *history][:buffer]
        with torch.no_grad():
            for leaf in leaves:
                leaf += step_size * torch.randn_like(leaf)
    assert clipped is (step_size == 1.0)


def test_weights_that_stay_give_batch_norm_of_all_batches_together():
    conv, layer = pair()
    batches = [torch.randn(2, 3, 5, 5).double() for _ in range(6)]
    for z in batches:
        y = layer(conv(z))
    together = F.batch_norm(conv(torch.cat(batches[-4:])), None, None, training=True)
    torch.testing.assert_close(y, together[-2:])


def test_compensation_gives_the_mean_exactly_and_a_plain_average_does_not():
    conv, layer = pair(buffer=1)
    z = torch.randn(2, 3, 5, 5).double() + 1
    layer(conv(z))
    before = layer.past[0].mean
    with torch.no_grad():
        conv.weight += torch.randn_like(conv.weight)
    found = layer.past[0].at(conv.weight.detach())[0]
    torch.testing.assert_close(found, conv(z).mean((0, 2, 3)).detach())
    assert not torch.allclose(found, before)


def test_the_averages_are_batch_norms():
    conv, layer = pair()
    theirs = nn.BatchNorm2d(4).double()
    for _ in range(4):
        z = torch.randn(2, 3, 5, 5).double()
        layer(conv(z))
        theirs(conv(z))
    torch.testing.assert_close(layer.running_mean, theirs.running_mean)
    torch.testing.assert_close(layer.running_var, theirs.running_var)
    assert layer.num_batches_tracked == 4
    torch.testing.assert_close(layer.eval()(conv(z)), theirs.eval()(conv(z)))


def test_burn_in_is_batch_norm():
    conv, layer = pair(burn_in=2)
    for _ in range(2):
        x = conv(torch.randn(2, 3, 5, 5).double())
        torch.testing.assert_close(layer(x), F.batch_norm(x, None, None, training=True))
        assert not layer.past
    layer(conv(torch.randn(2, 3, 5, 5).double()))
    x = conv(torch.randn(2, 3, 5, 5).double())
    assert not torch.allclose(layer(x), F.batch_norm(x, None, None, training=True))


def test_without_gradient_or_convolution_nothing_is_remembered():
    conv, layer = pair()
    with torch.no_grad():
        layer(conv(torch.randn(2, 3, 5, 5).double()))
    assert not layer.past
    layer.follow(None)
    layer(conv(torch.randn(2, 3, 5, 5).double()))
    assert not layer.past


def test_the_convolution_is_known_and_not_owned():
    conv, layer = pair()
    layer(conv(torch.randn(2, 3, 5, 5).double()))
    model = nn.Sequential(conv, layer)
    assert len(list(model.parameters())) == 3
    assert set(layer.state_dict()) == set(build("batch_norm", 4).state_dict())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin[1].convolution is twin[0]
        z = torch.randn(2, 3, 5, 5).double()
        torch.testing.assert_close(twin(z), copy.deepcopy(model)(z))


def test_another_type_and_a_loaded_state_forget_the_past():
    conv, layer = pair()
    for forget in (layer.float, lambda: layer.load_state_dict(layer.state_dict())):
        conv.to(layer.weight.dtype)
        layer(conv(torch.randn(2, 3, 5, 5).to(layer.weight)))
        assert layer.past
        forget()
        assert not layer.past


def test_autocast_keeps_statistics_in_float32():
    conv, layer = pair()
    conv.float()
    layer.float()
    for _ in range(3):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = layer(conv(torch.randn(2, 3, 5, 5)))
        assert y.dtype == torch.bfloat16
        y.float().square().sum().backward()
    assert all(t.dtype == torch.float32 for past in layer.past for t in past)


@pytest.mark.parametrize("network", ["test_resnet", "test_efficientnet"])
def test_timm_models_train_and_every_layer_knows_its_convolution(network):
    model = timm.create_model(network, num_classes=10)
    normbench.swap(model, "cross_iteration_bn")
    observe = registry.get("cross_iteration_bn").observe
    assert observe is not None
    assert observe(model) == {"cross_iteration_share": 1}
    layers = [m for m in model.modules() if isinstance(m, CrossIterationBN)]
    assert not any(layer.past for layer in layers)  # the proof ran on a copy
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(3):
        loss = F.cross_entropy(model(torch.randn(2, 3, 64, 64)), torch.arange(2))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert np.isfinite(loss.item())
    assert all(len(layer.past) == 3 for layer in layers)
    assert all(past.d_mean.any() for layer in layers for past in layer.past[:1])
    inside = {id(m) for m in model.modules()}
    assert all(id(layer.convolution) in inside for layer in layers)
