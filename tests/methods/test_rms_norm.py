from __future__ import annotations

import timm.layers
import torch

from normbench import build

C = 6


def test_output_is_timms():
    ours, theirs = build("rms_norm", C), timm.layers.RmsNorm2d(C)
    with torch.no_grad():
        ours.weight.copy_(torch.randn(C))
        theirs.weight.copy_(ours.weight)
    x = torch.randn(2, C, 5, 3) * 3 + 1
    torch.testing.assert_close(ours(x), theirs(x))


def test_every_position_has_a_mean_square_of_one():
    y = build("rms_norm", 64)(torch.randn(2, 64, 3, 3) * 7 + 2)
    torch.testing.assert_close(y.square().mean(1), torch.ones(2, 3, 3))


def test_eps_is_inside_the_root():
    y = build("rms_norm", C, eps=0.75)(torch.full((1, C, 1, 1), 0.5))
    torch.testing.assert_close(y, torch.full((1, C, 1, 1), 0.5))


def test_gamma_is_all_there_is_to_learn():
    assert [name for name, _ in build("rms_norm", C).named_parameters()] == ["weight"]
    assert not list(build("rms_norm", C, affine=False).parameters())


def test_positions_are_independent():
    layer, maps = build("rms_norm", C), torch.randn(2, C, 3, 3)
    torch.testing.assert_close(layer(maps)[..., 1, 2], layer(maps[..., 1, 2]))


def test_one_channel_keeps_its_sign():
    x = torch.tensor([3.0, -0.5]).view(2, 1, 1, 1)
    torch.testing.assert_close(build("rms_norm", 1)(x), x.sign(), atol=1e-5, rtol=0)


def test_an_input_of_zeros_has_a_gradient():
    x = torch.zeros(2, C, 3, 3, requires_grad=True)
    build("rms_norm", C)(x).sum().backward()
    torch.testing.assert_close(x.grad, torch.full_like(x, 1e3))
