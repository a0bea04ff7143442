from __future__ import annotations

import pytest
import timm
import timm.layers
import torch
from torch import nn

import normbench
from normbench import build

C = 6


def frn(act=None, **params):
    """The layer in float64, its parameters away from their start."""
    layer = build("filter_response_norm", C, act=act, **params).double()
    with torch.no_grad():
        for p in layer.parameters():
            p += 0.3 * torch.randn_like(p)
    return layer


@pytest.mark.parametrize("act", [None, nn.ReLU()], ids=["plain", "tlu"])
def test_output_and_gradients_are_timms(act):
    ours = frn(act, eps=1e-5)
    theirs = timm.layers.FilterResponseNormTlu2d(C, apply_act=act is not None).double()
    theirs.load_state_dict(ours.state_dict())
    x, probe = torch.randn(2, 3, C, 5, 3).double()
    results = []
    for layer in (ours, theirs):
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        inputs = [leaf, *(p for _, p in sorted(layer.named_parameters()))]
        results.append((y, *torch.autograd.grad(y, inputs, probe)))
    torch.testing.assert_close(results[0], results[1], rtol=1e-5, atol=1e-5)  # its root is float32


def test_eps_is_the_papers_and_inside_the_root():
    assert build("filter_response_norm", C).eps == 1e-6
    y = build("filter_response_norm", C, eps=0.75)(torch.full((1, C, 1, 1), 0.5))
    torch.testing.assert_close(y, torch.full((1, C, 1, 1), 0.5))


@pytest.mark.parametrize("act", [nn.ReLU(), nn.SiLU(), nn.Hardswish()], ids=repr)
def test_the_threshold_replaces_any_activation(act):
    x = torch.randn(3, C, 5, 5)
    plain, layer = build("filter_response_norm", C), build("filter_response_norm", C, act=act)
    torch.testing.assert_close(layer(x), plain(x).relu())
    with torch.no_grad():
        layer.tau.fill_(-0.7)
    torch.testing.assert_close(layer(x), plain(x).clamp_min(-0.7))


def test_without_an_activation_there_is_no_threshold():
    names = [name for name, _ in build("filter_response_norm", C).named_parameters()]
    assert names == ["weight", "bias"]


def test_a_learned_eps_is_one_number_from_1e_4_that_smooths_single_values():
    layer = build("filter_response_norm", C, learn_eps=True)
    assert layer.learned_eps.tolist() == pytest.approx([1e-4])
    x = torch.linspace(-0.03, 0.03, C).view(1, C)
    torch.testing.assert_close(layer(x), x / (x * x + 1e-4).sqrt())
    fixed = build("filter_response_norm", C)(x)
    torch.testing.assert_close(fixed, x.sign(), atol=0.02, rtol=0)


def test_the_sign_of_a_learned_eps_does_not_matter():
    x = torch.randn(2, C, 3, 3).double()
    layer = frn(learn_eps=True)
    y = layer(x)
    with torch.no_grad():
        layer.learned_eps.neg_()
    torch.testing.assert_close(layer(x), y)


def test_scaling_the_input_changes_nothing():
    x = torch.randn(2, C, 8, 8)
    layer = build("filter_response_norm", C, act=nn.ReLU())
    torch.testing.assert_close(layer(x * 100), layer(x), rtol=1e-4, atol=1e-5)


def test_in_a_model_thresholds_stand_for_the_activations_and_a_later_swap_has_them_back():
    model = timm.create_model("test_resnet", num_classes=10)
    report = normbench.swap(model, "filter_response_norm")
    layers = [m for m in model.modules() if type(m).__name__ == "FilterResponseNorm"]
    assert sum(layer.tau is not None for layer in layers) == report.consumed_activations > 0
    plain = timm.create_model("test_resnet", num_classes=10)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "tau" not in k}, False)
    normbench.swap(model, "group_norm")
    normbench.swap(plain, "group_norm")
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(model.eval()(x), plain.eval()(x))


def test_a_threshold_of_timms_layer_is_kept():
    model = nn.Sequential(nn.Conv2d(3, C, 3), timm.layers.FilterResponseNormTlu2d(C))
    with torch.no_grad():
        model[1].tau.copy_(torch.randn(C))
    x = torch.randn(2, 3, 8, 8)
    expected = model(x)
    normbench.swap(model, "filter_response_norm", example_input=x, eps=1e-5)
    assert type(model[1]).__name__ == "FilterResponseNorm"
    torch.testing.assert_close(model(x), expected)
