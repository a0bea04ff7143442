"""Methods that take over the weights of convolutions."""

import copy
import dataclasses

import pytest
import timm
import torch
from timm.layers import StdConv2d
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from normbench import registry, surgery
from normbench.surgery import weights

X = torch.randn(2, 3, 8, 8)


def standardized(weight: Tensor) -> Tensor:
    """Mean 0 and unbiased deviation 1 per filter, eps as the authors have it."""
    flat = weight.flatten(1)
    return ((flat.T - flat.mean(1)) / (flat.std(1) + 1e-5)).T.view_as(weight)


def test_every_convolution_with_a_fan_in_is_taken_over() -> None:
    model = timm.create_model("test_resnet")
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    originals = [conv.weight.detach().clone() for conv in convolutions]
    assert surgery.swap(model, "weight_standardization").weight_side == len(convolutions)
    for conv, original in zip(convolutions, originals, strict=True):
        torch.testing.assert_close(conv.weight, standardized(original), rtol=1e-4, atol=1e-5)


def test_filters_of_one_weight_are_left() -> None:
    depthwise = nn.Conv2d(3, 3, 1, groups=3)
    model = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), depthwise)
    report = surgery.swap(model, "weight_standardization", groups=1, example_input=X)
    assert report.weight_side == 1
    assert not parametrize.is_parametrized(depthwise)


def test_convolutions_that_standardize_already_are_left_with_a_note() -> None:
    model = nn.Sequential(StdConv2d(3, 8, 3), nn.BatchNorm2d(8))
    report = surgery.swap(model, "weight_standardization", groups=2, example_input=X)
    assert report.weight_side == 0
    assert "1 convolution" in report.notes[0]


def test_a_convolution_of_somebody_else_is_refused() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 8, 3)), nn.BatchNorm2d(8))
    with pytest.raises(surgery.SurgeryError, match="parametrized already"):
        surgery.swap(model, "weight_standardization", groups=2, example_input=X)


def test_another_swap_gives_convolutions_their_weights_back() -> None:
    model = timm.create_model("test_resnet")
    names = list(model.state_dict())
    surgery.swap(model, "weight_standardization")
    twin, x = copy.deepcopy(model).eval(), torch.randn(2, 3, 64, 64)
    before = twin(x)
    report = surgery.swap(model, "batch_norm")
    assert "got their own weights back" in report.notes[0]
    assert list(model.state_dict()) == names
    assert torch.equal(twin(x), before)  # a copy shares the class that torch made for it
    assert report.weight_side == 0


class Doubled(nn.Module):
    """A replacement of a convolution."""

    def __init__(self, conv: nn.Conv2d, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.weight = conv.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * nn.functional.conv2d(x, self.weight)


def test_a_weight_side_may_replace_the_convolution_and_ask_for_parameters() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.ReLU())
    expected = 2 * model[0](X)
    info = dataclasses.replace(registry.get("none"), weight=Doubled)
    assert weights.take_over(model, info, {"factor": 2.0, "unasked": 1})[0] == 1
    torch.testing.assert_close(model[0](X), expected)
    with pytest.raises(surgery.SurgeryError, match="build the model anew"):
        weights.undo(model)
