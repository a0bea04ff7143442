from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from torch import nn
from torch.nn.utils import parametrize

import normbench
from normbench import build, registry


def test_without_estimate_it_is_batch_norm_then_group_norm():
    layer = build("batch_channel_norm", 8, groups=4)
    theirs = nn.Sequential(nn.BatchNorm2d(8), nn.GroupNorm(4, 8))
    for _ in range(3):
        x = torch.randn(4, 8, 5, 5) * 2 + 1
        torch.testing.assert_close(layer(x), theirs(x))
    torch.testing.assert_close(layer.running_var, theirs[0].running_var)
    torch.testing.assert_close(layer.eval()(x), theirs.eval()(x))


def test_the_second_affine_is_per_group():
    layer = build("batch_channel_norm", 8, groups=2)
    assert layer.group_weight.shape == (2,)
    with torch.no_grad():
        layer.group_weight[1] = 0
        layer.group_bias[1] = 3
    y = layer(torch.randn(4, 8, 5, 5))
    assert (y[:, 4:] == 3).all()
    assert y[:, :4].std().item() == pytest.approx(1, abs=0.1)


def test_an_estimate_normalizes_by_what_it_will_in_evaluation():
    layer = build("batch_channel_norm", 8, groups=4, estimate=True)
    x = torch.randn(4, 8, 5, 5) * 2 + 1
    y = layer(x)
    torch.testing.assert_close(y, layer.eval()(x))


def test_an_estimate_is_defined_for_one_value_per_channel():
    layer = build("batch_channel_norm", 8, groups=2, estimate=True)
    assert torch.isfinite(layer(torch.randn(1, 8))).all()
    with pytest.raises(ValueError, match="values per channel"):
        build("batch_channel_norm", 8, groups=2)(torch.randn(1, 8))


@pytest.mark.parametrize(("channels", "used"), [(64, 32), (40, 20), (7, 7)])
def test_groups_are_the_largest_divisor_not_above_32(channels, used):
    assert build("batch_channel_norm", channels).groups == used


def test_a_group_of_one_value_is_refused():
    with pytest.raises(ValueError, match="values per channel"):
        build("batch_channel_norm", 8)(torch.randn(4, 8, 1, 1))


@pytest.mark.parametrize("standardize", [True, False])
def test_weights_are_standardized_unless_told_otherwise(standardize):
    weight_side = registry.get("batch_channel_norm").weight
    assert weight_side is not None
    conv = nn.Conv2d(3, 8, 3)
    params = registry.resolve_params("batch_channel_norm", {"standardize": standardize})
    assert weight_side(conv, **params) is None
    assert parametrize.is_parametrized(conv) is standardize


def test_zero_initialised_branches_stay_zero():
    model = timm.create_model("test_resnet", num_classes=10)
    report = normbench.swap(model, "batch_channel_norm")
    [end, *_] = [slot.name for slot in report.slots if slot.zero_init]
    layer = model.get_submodule(end)
    assert layer(torch.randn(2, layer.num_features, 4, 4)).abs().max() == 0
    assert layer.weight.abs().min() == 1
    twin = build("batch_channel_norm", layer.num_features)
    twin.load_state_dict(layer.state_dict())
    assert not twin.group_weight.any()


@pytest.mark.parametrize("estimate", [False, True])
@pytest.mark.parametrize("network", ["test_resnet", "test_efficientnet"])
def test_timm_models_train(network, estimate):
    model = timm.create_model(network, num_classes=10)
    report = normbench.swap(model, "batch_channel_norm", groups=4, estimate=estimate)
    assert report.replaced == report.found
    assert report.weight_side > 0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(2):
        loss = nn.functional.cross_entropy(model(torch.randn(4, 3, 64, 64)), torch.arange(4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert np.isfinite(loss.item())
