from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import timm
import torch
from timm.layers import Conv2dSame, pad_same
from torch import nn
from torch.nn import functional as F

import normbench
from normbench import surgery
from normbench.methods.cosine_norm import CosineConv
from normbench.registry import RegistryError

EPS = 1e-5
CONVS = [
    nn.Conv2d(4, 6, 3),
    nn.Conv2d(4, 6, 3, bias=False),
    nn.Conv2d(4, 6, 3, padding=1, stride=2),
    nn.Conv2d(4, 6, (3, 2), padding="same", dilation=2),
    nn.Conv2d(4, 6, 3, padding=2, padding_mode="reflect"),
    nn.Conv2d(4, 6, 3, padding=(1, 2), padding_mode="circular", stride=(1, 2)),
    nn.Conv2d(4, 6, 3, groups=2, padding=1, dilation=(2, 1)),
    nn.Conv2d(4, 4, 3, groups=4, padding=1),
    nn.Conv2d(4, 8, 3, groups=4),
    nn.Conv2d(4, 6, 1),
    Conv2dSame(4, 6, 3, stride=2),
    Conv2dSame(4, 6, (2, 5), stride=(3, 1), dilation=2),
]


def patches(conv, x):
    """The patches of each group as N,G,C/G·k·k,L, and the size of the map."""
    if isinstance(conv, Conv2dSame):
        x = pad_same(x, conv.kernel_size, conv.stride, conv.dilation)
    elif conv.padding == "same":
        x = F.pad(x, conv._reversed_padding_repeated_twice)
    else:
        mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        x = F.pad(x, conv._reversed_padding_repeated_twice, mode=mode)
    size = [
        (n - d * (k - 1) - 1) // s + 1
        for n, k, s, d in zip(
            x.shape[2:], conv.kernel_size, conv.stride, conv.dilation, strict=True
        )
    ]
    columns = F.unfold(x, conv.kernel_size, conv.dilation, 0, conv.stride)
    return columns.unflatten(1, (conv.groups, -1)), size


def cosines(conv, x, eps=EPS):
    """The cosine of every filter with every patch, one sum at a time."""
    columns, size = patches(conv, x)
    filters = conv.weight.flatten(1).unflatten(0, (conv.groups, -1))
    product = torch.einsum("gof,ngfl->ngol", filters, columns)
    of_filters = (filters.square().sum(2) + eps).sqrt()
    of_patches = (columns.square().sum(2) + eps).sqrt()
    z = (product / of_filters[None, :, :, None] / of_patches[:, :, None]).flatten(1, 2)
    z = z.unflatten(2, size)
    return z if conv.bias is None else z + conv.bias.view(-1, 1, 1)


@pytest.mark.parametrize("conv", CONVS, ids=repr)
def test_every_geometry_agrees_with_patches_unfolded(conv):
    conv = copy.deepcopy(conv).double()
    ours = CosineConv(copy.deepcopy(conv), EPS)
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    x[0, :, :5, :5] = 0  # patches of zeros
    a, b = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = ours(a), cosines(conv, b)
    torch.testing.assert_close(y, expected)
    probe = torch.randn_like(y)
    mine = torch.autograd.grad(y, [a, *ours.parameters()], probe)
    theirs = torch.autograd.grad(expected, [b, *conv.parameters()], probe)
    for found, want in zip(mine, theirs, strict=True):
        torch.testing.assert_close(found, want)


@pytest.mark.parametrize("conv", [nn.Conv1d(2, 3, 3), nn.Conv3d(2, 3, 2, padding=1)], ids=repr)
def test_a_filter_against_its_own_patch_in_1d_and_3d(conv):
    layer = CosineConv(conv, EPS)
    weight, bias = conv.weight.detach(), conv.bias.detach()
    y = layer(3 * weight)  # cosines of filter o with patch o are 1, at any scale
    for o in range(3):
        best = (y[o] - bias.view(-1, *[1] * (y.dim() - 2)))[o].max()
        torch.testing.assert_close(best, torch.tensor(1.0), rtol=1e-3, atol=1e-3)


def test_outputs_are_within_one_and_blind_to_the_scale_of_input_and_weight():
    conv = nn.Conv2d(4, 6, 3, padding=1, bias=False)
    x = torch.randn(2, 4, 8, 8)
    y = CosineConv(copy.deepcopy(conv), EPS)(x)
    assert y.abs().max() <= 1
    with torch.no_grad():
        conv.weight.mul_(100)
    again = CosineConv(conv, EPS)(100 * x)
    torch.testing.assert_close(again, y, rtol=1e-3, atol=1e-3)


def test_names_of_parameters_are_the_convolutions():
    conv = nn.Conv2d(4, 6, 3)
    layer = CosineConv(conv, EPS)
    assert list(layer.state_dict()) == ["weight", "bias"]
    assert layer.weight is conv.weight


def test_an_unknown_subclass_is_refused():
    class Mine(nn.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    with pytest.raises(RegistryError, match="Mine"):
        CosineConv(Mine(3, 4, 3), EPS)


def test_norms_of_patches_are_float32_under_autocast():
    layer = CosineConv(nn.Conv2d(4, 6, 3, bias=False), EPS)
    x = torch.randn(2, 4, 8, 8).half().float() * 300  # squares would overflow float16
    with torch.autocast("cpu", dtype=torch.float16):
        y = layer(x)
    assert y.dtype == torch.float16
    torch.testing.assert_close(y.float(), layer(x), rtol=1e-2, atol=1e-2)


def test_copies_and_compiled_modules_are_the_same():
    torch.compiler.reset()
    layer = CosineConv(nn.Conv2d(4, 6, 3, groups=2), EPS)
    x = torch.randn(2, 4, 8, 8)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), layer(x))
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x))


@pytest.mark.parametrize("network", ["test_resnet", "test_efficientnet"])
def test_timm_models_train_and_cannot_be_swapped_back(network):
    model = timm.create_model(network, num_classes=10)
    report = normbench.swap(model, "cosine_norm")
    assert report.weight_side == sum(isinstance(m, CosineConv) for m in model.modules())
    assert not [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(2):
        loss = F.cross_entropy(model(torch.randn(4, 3, 64, 64)), torch.arange(4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert np.isfinite(loss.item())
    with pytest.raises(surgery.SurgeryError, match="build the model anew"):
        normbench.swap(model, "batch_norm")
