"""Folding normalizations into convolutions: same outputs without them, or a reason."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

import normbench
from normbench import surgery
from normbench.surgery.kinds import walk


def lived_in(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in evaluation mode, no average and no affine parameter at its initial value."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(getattr(module, "running_mean", None), torch.Tensor):
            for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
                if tensor.is_floating_point() and tensor.dim() == 1:
                    tensor.data += 0.5 * torch.rand(tensor.shape, generator=generator)
    return model.eval()


@pytest.mark.parametrize("method", ["batch_norm", "batch_renorm", "moving_average_norm"])
@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_byobnet"])
def test_batch_norms_are_gone_and_outputs_are_the_same(name: str, method: str) -> None:
    model = timm.create_model(name, num_classes=10)
    slots = normbench.swap(model, method).found
    lived_in(model)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        report = normbench.fold(model)
        torch.testing.assert_close(model(x), expected, rtol=1e-3, atol=1e-4)
    assert len(report.folded) == slots
    assert report.left == ()
    assert report.error < 1e-9
    assert not any(hasattr(module, "running_mean") for module in model.modules())


def test_timms_own_batch_norms_fold_with_their_activations_kept() -> None:
    model = lived_in(timm.create_model("test_efficientnet"))
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        assert len(normbench.fold(model).folded) == 13
        torch.testing.assert_close(model(x), expected, rtol=1e-3, atol=1e-4)
    assert sum(isinstance(module, nn.SiLU) for module in model.modules()) > 0


@pytest.mark.parametrize("method", ["group_norm", "layer_norm_chw", "instance_norm", "proxy_norm"])
def test_what_depends_on_the_input_is_left_with_the_reason(method: str) -> None:
    model = timm.create_model("test_resnet")
    normbench.swap(model, method)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = normbench.fold(model.eval())
    assert report.folded == ()
    assert {reason for _, reason in report.left} == {
        "its evaluation is not one scale and shift per channel"
    }
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_norm_before_its_convolution_is_left_with_the_reason() -> None:
    model = lived_in(timm.create_model("resnetv2_50", num_classes=4))
    report = normbench.fold(model)
    reasons = dict(report.left)
    assert "no convolution or linear layer feeds it directly" in reasons.values()
    assert report.error < 1e-9


class Shared(nn.Module):
    """A convolution whose output two others read."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x)
        return self.norm(y) + y


def test_a_convolution_that_others_read_keeps_its_norm() -> None:
    report = normbench.fold(lived_in(Shared()), example_input=torch.randn(2, 3, 8, 8))
    assert report.folded == ()
    assert "also goes to" in report.left[0][1]


def test_standardized_weights_do_not_take_a_scale() -> None:
    from timm.layers import StdConv2d

    model = nn.Sequential(StdConv2d(3, 8, 3), nn.BatchNorm2d(8))
    report = normbench.fold(lived_in(model), example_input=torch.randn(2, 3, 8, 8))
    assert report.left == (("1", "the StdConv2d before it does not scale with its weight"),)


def test_a_parametrized_weight_is_baked_first() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
    torch.nn.utils.parametrizations.weight_norm(model[0])
    lived_in(model)
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        expected = model(x)
        assert normbench.fold(model, example_input=x).folded == (("1", "0"),)
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    assert [name for name, _ in model.named_parameters()] == ["0.weight", "0.bias"]


def test_linear_layers_and_sequences_fold_too() -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    lived_in(model)
    x = torch.randn(4, 5)
    with torch.no_grad():
        expected = model(x)
        assert normbench.fold(model, example_input=x).folded == (("1", "0"),)
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


def test_a_folded_network_is_batch_norm_as_reparametrisation() -> None:
    """And back: a norm put where one was folded, with a = 1 and b = 0, changes nothing."""
    model = lived_in(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()))
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        expected = model(x)
        normbench.fold(model, example_input=x)
        model[1] = nn.BatchNorm2d(8, eps=1e-12).eval()
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


def test_a_model_in_training_mode_is_refused() -> None:
    with pytest.raises(surgery.SurgeryError, match=r"model.eval\(\) first"):
        normbench.fold(timm.create_model("test_resnet"))


def test_a_model_without_normalizations_is_refused() -> None:
    with pytest.raises(surgery.SurgeryError, match="no normalization slots"):
        normbench.fold(timm.create_model("test_nfnet").eval())


def test_nothing_of_a_fold_draws_random_numbers() -> None:
    model = lived_in(timm.create_model("test_resnet"))
    before = torch.get_rng_state()
    normbench.fold(model)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(not isinstance(m, nn.BatchNorm2d) for _, m in walk(model))
