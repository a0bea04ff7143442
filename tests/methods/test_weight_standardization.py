from __future__ import annotations

import copy

import numpy as np
import pytest
import timm.layers
import torch
from oracles import norms
from torch import nn

from normbench import registry
from normbench.methods.weight_standardization import EPS

CONVS = [
    nn.Conv1d(3, 4, 3),
    nn.Conv2d(3, 4, 3),
    nn.Conv2d(4, 4, 3, groups=4),
    nn.Conv2d(8, 4, 1),
    nn.Conv3d(2, 4, 2),
]


def standardize(conv):
    weight_side = registry.get("weight_standardization").weight
    assert weight_side is not None
    assert weight_side(conv, groups=32, eps=None, affine=None) is None
    return conv


@pytest.mark.parametrize("conv", CONVS, ids=repr)
def test_weights_follow_the_authors_formula(conv):
    conv = standardize(copy.deepcopy(conv).double())
    original = conv.parametrizations.weight.original.detach().numpy()
    expected = norms.standardized_weight(original, 1e-5)
    np.testing.assert_allclose(conv.weight.detach(), expected, rtol=1e-12)


def test_gradient_reaches_the_original_weight():
    conv = standardize(nn.Conv2d(2, 3, 2).double())
    original = conv.parametrizations.weight.original
    probe = torch.randn_like(original)
    (conv.weight * probe).sum().backward()

    def loss(weight):
        return float((probe.numpy() * norms.standardized_weight(weight, 1e-5)).sum())

    expected = norms.gradient(loss, original.detach().numpy().copy())
    np.testing.assert_allclose(original.grad, expected, rtol=1e-5, atol=1e-7)


def test_eps_is_the_authors():
    assert EPS == 1e-5


def test_timms_layer_differs_only_by_the_variance_and_eps():
    # biased instead of unbiased: a factor √(n/(n−1)), n = 27
    theirs = timm.layers.StdConv2d(3, 4, 3, padding=0)
    ours = nn.Conv2d(3, 4, 3, bias=False)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 8, 8)
    ratio = (27 / 26) ** 0.5
    torch.testing.assert_close(standardize(ours)(x) * ratio, theirs(x), rtol=1e-3, atol=1e-3)


def test_a_fan_in_of_one_is_left_alone():
    conv = standardize(nn.Conv2d(4, 4, 1, groups=4))
    assert not nn.utils.parametrize.is_parametrized(conv)


def test_a_filter_of_equal_weights_gives_zeros_and_a_finite_gradient():
    conv = nn.Conv2d(2, 1, 3)
    nn.init.constant_(conv.weight, 0.5)
    standardize(conv)
    conv.weight.square().sum().backward()
    assert conv.weight.abs().max() == 0
    assert torch.isfinite(conv.parametrizations.weight.original.grad).all()


def test_scaling_the_original_weight_changes_nothing():
    conv = standardize(nn.Conv2d(3, 4, 3).double())
    before = conv.weight.detach().clone()
    with torch.no_grad():
        conv.parametrizations.weight.original.mul_(100)
    torch.testing.assert_close(conv.weight.detach(), before, rtol=1e-4, atol=1e-4)
