"""Slots and pairs of real timm models, at small inputs, and the same models after a swap."""

from typing import ClassVar

import pytest
import timm
import torch
from torch import nn

from normbench import surgery

# model: slots, followed by an activation, of those fused with it, gamma zero-initialised
COUNTS = {
    "resnet18": (20, 9, 0, 8),
    "resnet50": (53, 33, 0, 16),
    "efficientnet_b0": (49, 33, 33, 0),
    "mobilenetv3_small_100": (34, 23, 23, 0),
    "regnety_002": (44, 27, 27, 13),
    "densenet121": (121, 121, 121, 0),
    "vgg11_bn": (8, 8, 0, 0),
    "inception_v3": (94, 94, 94, 0),
    "resnetv2_50": (49, 49, 49, 0),
    "convnext_atto": (17, 0, 0, 0),
    "repvgg_a0": (61, 0, 0, 0),
    "hrnet_w18_small": (91, 43, 0, 0),
    "test_resnet": (15, 8, 0, 4),
    "test_efficientnet": (13, 9, 9, 0),
    "test_byobnet": (14, 6, 6, 4),
    "test_convnext": (14, 0, 0, 0),
    "test_vit": (13, 0, 0, 0),
}


@pytest.mark.parametrize("name", COUNTS)
def test_every_slot_is_found_paired_and_replaced(name: str) -> None:
    slots, paired, fused, zero = COUNTS[name]
    report = surgery.swap(timm.create_model(name, num_classes=10), "proxy_norm")
    assert (report.found, report.replaced, report.left) == (slots, slots, ())
    assert (report.paired_activations, report.consumed_activations) == (paired, paired)
    assert sum(slot.activation == "fused" for slot in report.slots) == fused
    assert sum(slot.zero_init for slot in report.slots) == zero


NORMS = (
    torch.nn.BatchNorm2d, torch.nn.GroupNorm, torch.nn.LayerNorm, torch.nn.RMSNorm,
    timm.layers.RmsNorm, timm.layers.EvoNorm2dS0,
)  # fmt: skip
"""What the models below are built with, subclasses (BatchNormAct2d, LayerNorm2d ...) included."""

WITHOUT_SLOTS = {"test_nfnet"}


@pytest.mark.parametrize("name", sorted(set(timm.list_models("test_*")) - WITHOUT_SLOTS))
def test_every_norm_of_every_timm_test_model_is_a_slot_and_none_is_left(name: str) -> None:
    model = timm.create_model(name, num_classes=10)
    norms = sum(isinstance(module, NORMS) for module in model.modules())
    report = surgery.swap(model, "layer_norm_channels")
    assert norms > 0
    assert (report.found, report.replaced, report.left) == (norms, norms, ())
    assert not any(isinstance(module, NORMS) for module in model.modules())
    model(torch.randn(report.input_shape)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "eps"), [("inception_v3", 1e-3), ("convnext_atto", 1e-6), ("test_resnet", 1e-5)]
)
def test_eps_is_that_of_the_architecture(name: str, eps: float) -> None:
    assert {slot.eps for slot in surgery.find_slots(timm.create_model(name))} == {eps}


def test_slots_come_in_the_order_of_execution() -> None:
    slots = surgery.find_slots(timm.create_model("resnet18"))
    names = [slot.name for slot in slots]
    assert [slot.order for slot in slots] == list(range(20))
    assert names[:3] == ["bn1", "layer1.0.bn1", "layer1.0.bn2"]
    # The shortcut runs after the residual branch, though it is defined later.
    assert names.index("layer2.0.downsample.1") == names.index("layer2.0.bn2") + 1


@pytest.mark.parametrize(("side", "smallest"), [(28, 1), (64, 4), (224, 49)])
def test_values_per_sample_are_those_of_the_given_input(side: int, smallest: int) -> None:
    slots = surgery.find_slots(timm.create_model("resnet18"), torch.randn(2, 3, side, side))
    assert min(slot.values_per_sample for slot in slots) == smallest


def test_a_vision_transformer_counts_its_tokens() -> None:
    slots = surgery.find_slots(timm.create_model("test_vit"))
    assert {slot.values_per_sample for slot in slots} == {10 * 10 + 1}  # patches and class token


@pytest.mark.parametrize("channels", [1, 4])
def test_the_example_has_the_channels_the_model_was_built_for(channels: int) -> None:
    report = surgery.swap(timm.create_model("test_resnet", in_chans=channels), "group_norm")
    assert report.input_shape == (2, channels, 64, 64)


class PatchesOf14(nn.Module):
    """Refuses sizes that its patches do not divide, and is built for any other."""

    pretrained_cfg: ClassVar = {"input_size": (3, 518, 518), "first_conv": "embed"}

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Conv2d(3, 8, 14, stride=14), nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[-1] % 14:
            raise ValueError("not a multiple of 14")
        return self.norm(self.embed(x))


def test_patches_of_14_are_watched_at_a_small_size_too() -> None:
    assert surgery.swap(PatchesOf14(), "layer_norm_channels").input_shape == (2, 3, 84, 84)


def test_a_fixed_input_size_is_the_only_one_tried() -> None:
    model = timm.create_model("test_resnet")
    model.pretrained_cfg["fixed_input_size"] = True
    assert surgery.swap(model, "group_norm").input_shape == (2, 3, 160, 160)


def test_a_configuration_may_name_no_first_convolution() -> None:
    """As CSATv2's does, which begins with a cosine transform."""
    model = timm.create_model("test_resnet")
    model.pretrained_cfg["first_conv"] = []
    assert surgery.swap(model, "group_norm").input_shape == (2, 3, 64, 64)


def test_a_stem_that_folds_space_into_depth_is_fed_images() -> None:
    model = timm.create_model("tresnet_m", num_classes=2)
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert len(surgery.find_slots(model)) == len(norms) == 60


def test_a_model_of_fixed_size_is_watched_at_that_size() -> None:
    model = timm.create_model("test_vit", img_size=32)
    assert surgery.swap(model, "layer_norm_channels").input_shape == (2, 3, 32, 32)
