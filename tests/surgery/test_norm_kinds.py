"""Every kind of normalization is recognised and replaced where it stands."""

import pytest
import torch
from timm import layers
from timm.layers import (
    BatchNormAct2d,
    EvoNorm2dB0,
    EvoNorm2dS0,
    FilterResponseNormAct2d,
    FilterResponseNormTlu2d,
    FrozenBatchNormAct2d,
    GroupNorm,
    GroupNorm1,
    GroupNormAct,
    LayerNorm,
    LayerNorm2d,
    LayerNormAct2d,
    RmsNorm,
    RmsNorm2d,
    SimpleNorm,
)
from timm.layers.inplace_abn import InplaceAbn
from torch import Tensor, nn
from torchvision.ops.misc import FrozenBatchNorm2d

from normbench import surgery
from normbench.surgery import kinds

IMAGES, SIGNALS, VOLUMES, TOKENS = (2, 8, 4, 4), (2, 8, 6), (2, 8, 3, 3, 3), (2, 5, 8)
IMAGES_LAST = (2, 4, 4, 8)

KINDS = [
    (nn.BatchNorm1d(8), SIGNALS),
    (nn.BatchNorm2d(8), IMAGES),
    (nn.BatchNorm3d(8), VOLUMES),
    (nn.SyncBatchNorm(8), IMAGES),
    (BatchNormAct2d(8), IMAGES),
    (GroupNorm(8, num_groups=2), IMAGES),
    (GroupNorm1(8), IMAGES),
    (GroupNormAct(8, num_groups=2), IMAGES),
    (nn.GroupNorm(2, 8), VOLUMES),
    (nn.InstanceNorm2d(8), IMAGES),
    (nn.LayerNorm(8), TOKENS),
    (LayerNorm(8), IMAGES_LAST),
    (LayerNorm2d(8), IMAGES),
    (LayerNormAct2d(8), IMAGES),
    (RmsNorm(8), TOKENS),
    (RmsNorm2d(8), IMAGES),
    (SimpleNorm(8), TOKENS),
    (FrozenBatchNorm2d(8), IMAGES),
    (FrozenBatchNormAct2d(8), IMAGES),
    (EvoNorm2dB0(8), IMAGES),
    (EvoNorm2dS0(8, group_size=4), IMAGES),
    (FilterResponseNormTlu2d(8), IMAGES),
    (FilterResponseNormAct2d(8), IMAGES),
]


@pytest.mark.parametrize(("norm", "shape"), KINDS, ids=lambda v: type(v).__name__)
def test_kind_is_found_and_replaced(norm: nn.Module, shape: tuple[int, ...]) -> None:
    model = nn.Sequential(nn.Identity(), norm)
    x = torch.randn(shape)
    report = surgery.swap(model, "group_norm", groups=2, example_input=x)
    (slot,) = report.slots
    assert (slot.kind, slot.num_features) == (type(norm).__name__, 8)
    assert slot.values_per_sample == x.numel() // 16  # batch 2, 8 channels
    assert surgery.find_slots(model, x)[0].kind == "group_norm"


def test_every_norm_layer_of_timm_is_known() -> None:
    """But global response norm, which adds its result to its input: a layer of its own."""
    homes = (
        layers.norm,
        layers.norm_act,
        layers.evo_norm,
        layers.filter_response_norm,
        layers.split_batchnorm,
        layers.grn,
    )
    found = {
        name: value
        for home in homes
        for name, value in vars(home).items()
        if "Norm" in name and isinstance(value, type) and value.__module__ == home.__name__
    }
    known = (*kinds.CHANNELS_FIRST, *kinds.CHANNELS_LAST)
    unknown = {name for name, value in found.items() if not issubclass(value, known)}
    assert len(found) > 30
    assert unknown == {"GlobalResponseNorm"}


@pytest.mark.parametrize("shape", [(2, 8), TOKENS, IMAGES_LAST], ids=str)
def test_channels_last_slots_see_their_channels(shape: tuple[int, ...]) -> None:
    model = nn.Sequential(nn.LayerNorm(8))
    nn.init.normal_(model[0].weight)
    nn.init.normal_(model[0].bias)
    x = torch.randn(shape)
    expected = model(x)
    surgery.swap(model, "layer_norm_channels", example_input=x)
    torch.testing.assert_close(model(x), expected)
    assert model(x).is_contiguous()


class Slope(nn.Module):
    """A stand-in for dropout that can be seen and does not commute with the activation."""

    def forward(self, x: Tensor) -> Tensor:
        return 3 * x - 1


def test_fused_slot_keeps_norm_drop_act_in_this_order() -> None:
    norm = BatchNormAct2d(8, act_layer=nn.SiLU, drop_layer=Slope)
    nn.init.normal_(norm.weight)
    model, x = nn.Sequential(norm), torch.randn(IMAGES)
    surgery.swap(model, "instance_norm", example_input=x)
    normal = nn.functional.instance_norm(x, weight=norm.weight, bias=norm.bias)
    torch.testing.assert_close(model(x), nn.functional.silu(3 * normal - 1))


def test_fused_slot_without_activation_becomes_the_bare_layer() -> None:
    model = nn.Sequential(BatchNormAct2d(8, apply_act=False))
    names = set(model.state_dict())
    surgery.swap(model, "batch_norm", example_input=torch.randn(IMAGES))
    assert set(model.state_dict()) == names


def test_a_norm_that_is_its_own_nonlinearity_gets_one_with_a_note() -> None:
    model = nn.Sequential(FilterResponseNormTlu2d(8))
    report = surgery.swap(model, "none", example_input=(x := torch.randn(IMAGES)))
    assert "ReLU stands for it" in report.notes[0]
    torch.testing.assert_close(model(x), x.relu())


@pytest.mark.parametrize(
    ("norm", "reason"),
    [(nn.LayerNorm((8, 4, 4)), "several dimensions"), (InplaceAbn(8, apply_act=False), "one call")],
)
def test_what_cannot_be_replaced_is_left_with_the_reason(norm: nn.Module, reason: str) -> None:
    norm.forward = lambda x: x  # type: ignore[method-assign]
    model = nn.Sequential(nn.BatchNorm2d(8), norm)
    report = surgery.swap(model, "group_norm", groups=2, example_input=torch.randn(IMAGES))
    assert (report.found, report.replaced) == (2, 1)
    assert report.left[0][0] == "1"
    assert reason in report.left[0][1]
