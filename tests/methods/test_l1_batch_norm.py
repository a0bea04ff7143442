from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from torch import nn

from normbench import build, swap

C = 4


def test_output_and_averages_in_numpy(rng):
    layer = build("l1_batch_norm", C, eps=0.01, momentum=0.25).double()
    x = rng.normal(3, 2, (4, C, 5, 2))
    mean = x.mean((0, 2, 3), keepdims=True)
    std = np.sqrt(np.pi / 2) * np.abs(x - mean).mean((0, 2, 3), keepdims=True)
    y = layer(torch.from_numpy(x)).detach()
    np.testing.assert_allclose(y, (x - mean) / (std + 0.01), rtol=1e-12)
    np.testing.assert_allclose(layer.running_mean, 0.25 * mean.ravel(), rtol=1e-12)
    np.testing.assert_allclose(layer.running_std, 0.75 + 0.25 * std.ravel(), rtol=1e-12)


def test_gaussian_values_come_out_as_from_batch_norm():
    x = torch.randn(256, C, 32, 32) * torch.tensor([0.1, 1.0, 3.0, 20.0]).view(1, -1, 1, 1)
    expected = build("batch_norm", C)(x)
    torch.testing.assert_close(build("l1_batch_norm", C)(x), expected, rtol=0.01, atol=0.01)


def test_other_values_do_not():
    x = torch.randn(64, C, 8, 8) ** 3
    assert build("l1_batch_norm", C)(x).var() > 2 * build("batch_norm", C)(x).var()


def test_the_scale_of_the_input_is_forgotten_and_its_gradient_shrinks_with_it():
    layer, probe = build("l1_batch_norm", C, eps=1e-12).double(), torch.randn(6, C, 3, 3).double()
    x = torch.randn(6, C, 3, 3, dtype=torch.float64)
    small, large = x.clone().requires_grad_(), (8 * x).requires_grad_()
    torch.testing.assert_close(layer(small), layer(large))
    (layer(small) * probe).sum().backward()
    (layer(large) * probe).sum().backward()
    torch.testing.assert_close(small.grad, 8 * large.grad)


def test_eps_is_added_outside_of_any_root():
    x = torch.tensor([[-1e-4], [1e-4]])
    expected = x / (np.sqrt(np.pi / 2) * 1e-4 + 1e-3)
    torch.testing.assert_close(build("l1_batch_norm", 1, eps=1e-3)(x), expected)


def test_loading_batch_norm_takes_the_root_of_its_variance():
    old = nn.BatchNorm2d(C)
    old(torch.randn(8, C, 4, 4) * 5)
    layer = build("l1_batch_norm", C)
    layer.load_state_dict(old.state_dict())
    torch.testing.assert_close(layer.running_std, old.running_var.sqrt())
    x = torch.randn(2, C, 3, 3)
    torch.testing.assert_close(layer.eval()(x), old.eval()(x), rtol=1e-3, atol=1e-4)


def test_a_swap_there_and_back_keeps_the_averages():
    model = nn.Sequential(nn.Conv2d(3, C, 3), nn.BatchNorm2d(C))
    for _ in range(20):
        model(torch.randn(8, 3, 8, 8) * 4)
    before = model[1].running_var.clone()
    for method in ("l1_batch_norm", "batch_norm"):
        swap(model, method, example_input=torch.randn(2, 3, 8, 8))
    torch.testing.assert_close(model[1].running_var, before, rtol=1e-4, atol=1e-4)


def test_one_value_per_channel_is_refused_in_training_only():
    layer = build("l1_batch_norm", C)
    with pytest.raises(ValueError, match="values per channel"):
        layer(torch.randn(1, C, 1, 1))
    assert layer.eval()(torch.randn(1, C, 1, 1)).shape == (1, C, 1, 1)


def test_a_constant_channel_gives_beta():
    layer = build("l1_batch_norm", C)
    nn.init.constant_(layer.bias, 0.5)
    assert torch.equal(layer(torch.full((4, C), 2.0)), torch.full((4, C), 0.5))


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet"])
def test_a_timm_model_trains(name):
    model = timm.create_model(name, num_classes=10)
    report = swap(model, "l1_batch_norm")
    assert report.replaced == report.found
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(2):
        loss = nn.functional.cross_entropy(model(torch.randn(4, 3, 96, 96)), torch.arange(4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert torch.isfinite(loss)
