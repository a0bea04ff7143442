from __future__ import annotations

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from normbench import build, swap

C = 4


def reference(layer, x, slope=0.01):
    """torch's batch norm with |gamma| + eps, then torch's leaky ReLU."""
    scale = layer.weight.abs() + layer.eps
    return F.leaky_relu(F.batch_norm(x, None, None, scale, layer.bias, True, 0.1, layer.eps), slope)


def with_parameters(gamma, beta, **params):
    layer = build("inplace_abn", C, act=nn.ReLU(), **params).double()
    layer.weight.data.copy_(torch.tensor(gamma))
    layer.bias.data.copy_(torch.tensor(beta))
    return layer


@pytest.mark.parametrize("slope", [0.01, 0.3])
@pytest.mark.parametrize("shape", [(6, C), (4, C, 7), (3, C, 4, 5), (2, C, 3, 2, 2)], ids=str)
def test_it_is_batch_norm_and_leaky_relu_with_torchs_gradients(shape, slope):
    layer = with_parameters([1.5, -0.7, 0.2, -2.0], [0.3, -1.0, 2.0, 0.0], slope=slope)
    x, probe = torch.randn(shape).double() * 3 + 1, torch.randn(shape).double()
    results = []
    for function in (layer, lambda v: reference(layer, v, slope)):
        leaf = x.clone().requires_grad_()
        y = function(leaf)
        leaves = [leaf, layer.weight, layer.bias]
        results.append((y, *torch.autograd.grad(y, leaves, probe)))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("x_last", [True, False])
@pytest.mark.parametrize("probe_last", [True, False])
def test_memory_formats_of_input_and_gradient_change_nothing(x_last, probe_last):
    layer = with_parameters([1.5, -0.7, 0.2, -2.0], [0.3, -1.0, 2.0, 0.0])
    x, probe = torch.randn(3, C, 4, 5).double(), torch.randn(3, C, 4, 5).double()
    (expected,) = torch.autograd.grad(reference(layer, x.requires_grad_()), x, probe)
    last = torch.channels_last
    given = x.detach().contiguous(memory_format=last) if x_last else x.detach()
    given.requires_grad_()
    probe = probe.contiguous(memory_format=last) if probe_last else probe
    (found,) = torch.autograd.grad(layer(given), given, probe)
    torch.testing.assert_close(found, expected)


def test_the_averages_are_batch_norms():
    layer, plain = build("inplace_abn", C, act=nn.ReLU()), nn.BatchNorm2d(C)
    for _ in range(3):
        x = torch.randn(4, C, 5, 5) * 2 + 1
        layer(x)
        plain(x)
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(layer.get_buffer(name), buffer)


def test_the_backward_keeps_the_output_and_not_the_input():
    def kept(module):
        x, storages = torch.randn(2, C, 8, 8, requires_grad=True) + 0, set()
        hooks = torch.autograd.graph.saved_tensors_hooks(
            lambda t: storages.add(t.data_ptr()) or t, lambda t: t
        )
        with hooks:
            y = module(x)
        return x.data_ptr() in storages, y.data_ptr() in storages

    assert kept(build("inplace_abn", C, act=nn.ReLU())) == (False, True)
    assert kept(nn.Sequential(nn.BatchNorm2d(C), nn.LeakyReLU()))[0]


def test_a_gamma_of_zero_can_grow():
    layer = with_parameters([0.0] * C, [0.0] * C)
    x = torch.randn(8, C, 3, 3).double().requires_grad_()
    (layer(x) * x.detach()).sum().backward()
    assert (layer.weight.grad > 1).all()  # the derivative of |gamma| at 0 is 1
    assert torch.isfinite(x.grad).all()


def test_a_negative_gamma_counts_as_positive_and_has_the_opposite_gradient():
    up, down = (with_parameters([sign] * C, [0.1] * C) for sign in (1.0, -1.0))
    x = torch.randn(4, C, 3, 3).double()
    torch.testing.assert_close(up(x), down(x))
    for layer in (up, down):
        layer(x).square().sum().backward()
    torch.testing.assert_close(up.weight.grad, -down.weight.grad)


def test_the_activation_it_takes_over_is_not_applied():
    x = torch.randn(4, C, 5, 5)
    expected = build("inplace_abn", C, act=nn.ReLU())(x)
    torch.testing.assert_close(build("inplace_abn", C, act=nn.Tanh())(x), expected)
    assert expected.min() < 0


def test_without_an_activation_there_is_none_and_the_output_may_be_overwritten():
    layer, plain = build("inplace_abn", C), build("batch_norm", C)
    a = torch.randn(4, C, 5, 5, requires_grad=True)
    b = a.detach().clone().requires_grad_()
    ours, expected = layer(a), plain(b) * (1 + 1e-5)
    torch.testing.assert_close(ours, expected)
    (ours.add_(1)).square().sum().backward()  # what a residual connection does
    (expected + 1).square().sum().backward()
    torch.testing.assert_close(a.grad, b.grad)


def test_an_overwritten_output_is_an_error_and_not_a_wrong_gradient():
    y = build("inplace_abn", C, act=nn.ReLU())(torch.randn(4, C, 5, 5, requires_grad=True))
    y += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_a_second_derivative_is_refused():
    x = torch.randn(2, C, 3, 3, requires_grad=True)
    y = build("inplace_abn", C, act=nn.ReLU())(x)
    (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_float32_gradients_hold_while_gamma_is_not_tiny():
    layer = with_parameters([1.0, -0.1, 0.5, 2.0], [3.0, -3.0, 1.0, 0.0])
    x, probe = torch.randn(16, C, 6, 6), torch.randn(16, C, 6, 6)
    gradients = []
    for kind in (torch.float64, torch.float32):
        leaf = x.to(kind).requires_grad_()
        (layer.to(kind)(leaf) * probe).sum().backward()
        gradients.append(leaf.grad.double())
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("act", [None, nn.ReLU()], ids=["bare", "relu"])
def test_one_value_per_channel_is_refused_in_training_only(act):
    layer = build("inplace_abn", C, act=act)
    with pytest.raises(ValueError, match="values per channel"):
        layer(torch.randn(1, C, 1, 1))
    assert layer.num_batches_tracked == 0
    assert layer.eval()(torch.randn(1, C)).shape == (1, C)


def test_a_later_swap_gives_the_activation_back():
    model = nn.Sequential(nn.Conv2d(3, C, 3), nn.BatchNorm2d(C), nn.SiLU())
    example = torch.randn(2, 3, 8, 8)
    expected = model(example)
    assert swap(model, "inplace_abn", example_input=example).consumed_activations == 1
    swap(model, "batch_norm", example_input=example)
    torch.testing.assert_close(model(example), expected)


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_a_timm_model_trains(name):
    model = timm.create_model(name, num_classes=10)
    report = swap(model, "inplace_abn")
    assert report.replaced == report.found
    assert report.consumed_activations > 0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(2):
        loss = nn.functional.cross_entropy(model(torch.randn(4, 3, 96, 96)), torch.arange(4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert torch.isfinite(loss)
