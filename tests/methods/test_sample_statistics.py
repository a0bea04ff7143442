"""Methods whose statistics are each sample's own, against the papers and against libraries."""

from __future__ import annotations

import numpy as np
import pytest
import timm.layers
import torch
from checks import TOLERANCE, assert_gradients, forward, set_parameters
from oracles import norms
from torch import nn

from normbench import build, registry

C, EPS = 6, 1e-3
ORACLES = {
    "group_norm(groups=3)": lambda x, w, b: norms.group_norm(x, w, b, 3, EPS),
    "layer_norm_chw": lambda x, w, b: norms.group_norm(x, w, b, 1, EPS),
    "layer_norm_channels": lambda x, w, b: norms.layer_norm_channels(x, w, b, EPS),
    "instance_norm": lambda x, w, b: norms.instance_norm(x, w, b, EPS),
    "weight_standardization(groups=2)": lambda x, w, b: norms.group_norm(x, w, b, 2, EPS),
    "none(affine=True)": norms.affine,
}


@pytest.fixture(params=ORACLES)
def pair(request, rng):
    name, params = registry.parse_variant(request.param)
    gamma, beta = rng.normal(1, 0.3, C), rng.normal(size=C)
    if "eps" in registry.get(name).params:
        params["eps"] = EPS
    layer = set_parameters(build(name, C, **params), weight=gamma, bias=beta)
    return layer, ORACLES[request.param], gamma, beta


@pytest.mark.parametrize("training", [True, False])
def test_output_follows_the_equation(pair, rng, training):
    layer, oracle, gamma, beta = pair
    x = rng.normal(2, 3, (3, C, 4, 2))
    found = forward(layer.train(training), x)
    np.testing.assert_allclose(found, oracle(x, gamma, beta), **TOLERANCE)


def test_gradients(pair, rng):
    layer, oracle, gamma, beta = pair
    x = rng.normal(size=(2, C, 2, 2))

    def named(x, weight, bias):
        return oracle(x, weight, bias)

    assert_gradients(layer, named, x, weight=gamma, bias=beta)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (build("group_norm", 64), nn.GroupNorm(32, 64)),
        (build("layer_norm_chw", 64, eps=1e-6), timm.layers.GroupNorm1(64, eps=1e-6)),
        (build("layer_norm_channels", 64, eps=1e-6), timm.layers.LayerNorm2d(64)),
        (build("instance_norm", 64), nn.InstanceNorm2d(64, affine=True)),
    ],
    ids=["GroupNorm", "GroupNorm1", "LayerNorm2d", "InstanceNorm2d"],
)
def test_output_is_the_librarys(ours, theirs):
    x = torch.randn(2, 64, 5, 5) * 2 + 1
    torch.testing.assert_close(ours(x), theirs(x))


@pytest.mark.parametrize(
    ("channels", "used"), [(64, 32), (48, 24), (40, 20), (16, 16), (7, 7), (37, 1)]
)
def test_groups_are_the_largest_divisor_not_above_32(channels, used):
    layer = build("group_norm", channels)
    assert layer.groups == used
    assert f"groups={used}" in repr(layer)


def test_groups_in_use_are_observed():
    model = nn.Sequential(build("group_norm", 64), build("group_norm", 40))
    observe = registry.get("group_norm").observe
    assert observe is not None
    assert observe(model) == {"group_norm_groups_min": 20, "group_norm_groups_max": 32}


def test_none_is_the_identity():
    x = torch.randn(2, C, 3, 3)
    layer = build("none", C)
    assert torch.equal(layer(x), x)
    assert not list(layer.parameters())


@pytest.mark.parametrize("method", ["instance_norm", "group_norm", "layer_norm_chw", "proxy_norm"])
def test_a_group_of_one_value_is_refused(method):
    channels = 1 if method in ("layer_norm_chw", "proxy_norm") else 8
    with pytest.raises(ValueError, match="values per channel"):
        build(method, channels)(torch.randn(4, channels, 1, 1))


def test_layer_norm_of_one_channel_is_refused():
    with pytest.raises(ValueError, match="values per channel"):
        build("layer_norm_channels", 1)(torch.randn(4, 1, 5, 5))
