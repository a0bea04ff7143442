from __future__ import annotations

import pytest
import torch
from torch import nn

from normbench import build
from normbench.registry import RegistryError

C = 8


@pytest.mark.parametrize("shape", [(3, C, 5, 4), (3, C, 7), (2, C, 3, 2, 2)], ids=str)
@pytest.mark.parametrize("size", [1, 5, 7])
def test_output_and_gradient_are_torchs_with_alpha_times_size(shape, size):
    ours = build("local_response_norm", C, size=size, alpha=0.3)
    theirs = nn.LocalResponseNorm(size, alpha=0.3 * size, beta=0.75, k=2.0)
    x, probe = torch.randn(2, *shape).double() * 3
    results = []
    for layer in (ours, theirs):
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        results.append((y, *torch.autograd.grad(y, leaf, probe)))
    torch.testing.assert_close(results[0], results[1])


def test_constants_are_the_papers():
    layer = build("local_response_norm", C)
    assert (layer.size, layer.alpha, layer.beta, layer.k) == (5, 1e-4, 0.75, 2.0)
    assert not list(layer.parameters())


def test_the_window_is_cut_at_the_edges():
    y = build("local_response_norm", C, alpha=1.0, beta=1.0, k=1.0)(torch.ones(1, C))
    torch.testing.assert_close(y, 1 / torch.tensor([[4.0, 5, 6, 6, 6, 6, 5, 4]]))


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_a_window_wider_than_the_channels_is_all_of_them(channels):
    x = torch.randn(3, channels, 4, 4)
    y = build("local_response_norm", channels, size=9, alpha=1.0, beta=0.5)(x)
    torch.testing.assert_close(y, x / (2 + x.square().sum(1, keepdim=True)).sqrt())


def test_an_even_window_is_refused():
    with pytest.raises(RegistryError, match="size is 4; expected an odd number"):
        build("local_response_norm", C, size=4)


def test_affine_scales_and_shifts_the_result():
    layer, plain = build("local_response_norm", C, affine=True), build("local_response_norm", C)
    x = torch.randn(2, C, 3, 3)
    with torch.no_grad():
        layer.weight.fill_(3)
        layer.bias.fill_(-1)
    torch.testing.assert_close(layer(x), 3 * plain(x) - 1)


def test_a_second_derivative_is_refused():
    x = torch.randn(2, C, 3, 3, requires_grad=True)
    y = build("local_response_norm", C)(x)
    (gradient,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
