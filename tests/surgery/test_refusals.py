"""What surgery refuses, in a sentence that says what to do."""

import json

import pytest
import timm
import torch
from timm.utils.model import reparameterize_model
from torch import Tensor, nn

from normbench import surgery
from normbench.surgery import SurgeryError

X = torch.randn(2, 3, 8, 8)


def test_a_model_without_slots_is_named_with_what_was_looked_for() -> None:
    with pytest.raises(SurgeryError, match=r"NormFreeNet has no normalization slots.*BatchNorm"):
        surgery.swap(timm.create_model("test_nfnet"), "group_norm")


def test_a_model_without_configuration_asks_for_an_example() -> None:
    with pytest.raises(SurgeryError, match="pass example_input"):
        surgery.find_slots(nn.Sequential(nn.BatchNorm2d(3)))


def test_a_model_that_does_not_run_says_at_which_shape() -> None:
    with pytest.raises(SurgeryError, match=r"does not run on an input of shape \(2, 3, 8, 8\)"):
        surgery.find_slots(nn.Sequential(nn.BatchNorm2d(4)), X)


def test_a_fused_model_is_refused() -> None:
    model = reparameterize_model(timm.create_model("mobileone_s0", num_classes=2))
    model.head = nn.Sequential(nn.BatchNorm2d(1024), model.head)  # one slot is left to find
    with pytest.raises(SurgeryError, match=r"re-parametrised at '.*swap first"):
        surgery.swap(model, "group_norm")


def test_a_compiled_model_is_refused() -> None:
    model = torch.compile(nn.Sequential(nn.BatchNorm2d(3)), backend="eager")
    with pytest.raises(SurgeryError, match="swap first, then compile"):
        surgery.swap(model, "group_norm", example_input=X)


def test_a_bare_norm_is_no_model() -> None:
    with pytest.raises(SurgeryError, match=r"use normbench\.build"):
        surgery.swap(nn.BatchNorm2d(3), "group_norm", example_input=X)


def test_a_model_that_cannot_be_copied_says_so() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3))
    model.seen = model[0].weight * 2  # not a leaf: torch refuses to copy it
    with pytest.raises(SurgeryError, match="cannot be copied"):
        surgery.swap(model, "group_norm", example_input=X)


class HoldsOn(nn.Module):
    """Calls its norm through a reference that no replacement reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.also = [self.norm]

    def forward(self, x: Tensor) -> Tensor:
        return self.also[0](x)


def test_a_model_that_holds_on_to_its_old_norm_is_found_out() -> None:
    with pytest.raises(SurgeryError, match="layers at norm are not reached"):
        surgery.swap(HoldsOn(), "instance_norm", example_input=X)


def test_statistics_that_do_not_exist_at_batch_one_are_noted_not_refused() -> None:
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3))
    report = surgery.swap(model, "batch_norm", example_input=X[:1])
    assert "proved in evaluation only" in report.notes[0]
    assert report.min_values_per_sample == 1


def test_statistics_that_exist_nowhere_are_refused_in_the_words_of_the_method() -> None:
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(3))
    with pytest.raises(SurgeryError, match="values per channel"):
        surgery.swap(model, "instance_norm", example_input=X)


class Branches(nn.Module):
    """A norm that only runs in training, as an auxiliary head does."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.auxiliary = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x) + (self.auxiliary(x) if self.training else 0)


def test_a_slot_that_does_not_run_is_replaced_and_noted() -> None:
    model = Branches()
    report = surgery.swap(model, "group_norm", groups=1, example_input=X)
    assert report.replaced == 2
    assert "did not run in the pass watched: auxiliary" in report.notes[0]
    assert report.min_values_per_sample == 64
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def test_the_report_is_plain_data_and_readable() -> None:
    report = surgery.swap(timm.create_model("test_efficientnet"), "group_norm", groups=8)
    data = json.loads(json.dumps(report.to_json()))
    assert (data["found"], data["replaced"], data["variant"]) == (13, 13, "group_norm(groups=8)")
    assert "slots" not in data
    assert len(report.to_json(slots=True)["slots"]) == 13
    assert str(report).startswith("group_norm(groups=8) in EfficientNet: 13 of 13 slots replaced")
