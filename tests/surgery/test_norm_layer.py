"""`norm_layer` for timm's own construction, and the check that it was honoured."""

import pytest
import timm
import torch
from torch import nn

from normbench import surgery
from normbench.registry import RegistryError
from normbench.surgery import SurgeryError, norm_layer


@pytest.mark.parametrize(("name", "layers"), [("test_resnet", 15), ("resnet18", 20)])
def test_a_model_that_honours_it_has_the_method_everywhere(name: str, layers: int) -> None:
    layer = norm_layer("group_norm", groups=8)
    model = timm.create_model(name, norm_layer=layer)
    assert layer.check(model) == layers


def test_it_builds_what_a_swap_builds() -> None:
    torch.manual_seed(0)
    built = timm.create_model("test_resnet", norm_layer=norm_layer("group_norm", groups=8)).eval()
    torch.manual_seed(0)
    swapped = timm.create_model("test_resnet").eval()
    surgery.swap(swapped, "group_norm", groups=8)
    x = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(built(x), swapped(x))


def test_a_model_that_ignores_it_fails_the_check() -> None:
    with pytest.raises(SurgeryError, match=r"BatchNorm is left at bn1.*use normbench\.swap"):
        norm_layer("group_norm").check(timm.create_model("resnet18"))


def test_a_model_without_any_fails_the_check() -> None:
    with pytest.raises(SurgeryError, match="it has LayerNorm"):
        norm_layer("group_norm").check(timm.create_model("test_vit"))


def test_a_model_with_channels_last_fails_the_check() -> None:
    layer = norm_layer("group_norm")
    with pytest.raises(SurgeryError, match="does not run"):
        layer.check(timm.create_model("test_vit", norm_layer=layer))


def test_a_model_that_fuses_norm_and_activation_refuses_it_aloud() -> None:
    with pytest.raises(AssertionError, match="No equivalent norm_act layer"):
        timm.create_model("test_efficientnet", norm_layer=norm_layer("group_norm"))


def test_what_it_builds_can_be_swapped_again() -> None:
    model = timm.create_model("test_resnet", norm_layer=norm_layer("group_norm", groups=8))
    report = surgery.swap(model, "batch_norm")
    assert (report.found, report.paired_activations) == (15, 8)


def test_the_model_decides_eps_where_the_method_leaves_it_open() -> None:
    layer = norm_layer("batch_norm")
    assert isinstance(built := layer(4, eps=1e-2, dtype=torch.float64), nn.Module)
    assert built.eps == 1e-2
    assert built.weight.dtype == torch.float64


def test_mistakes_are_refused_at_once() -> None:
    with pytest.raises(RegistryError, match="did you mean 'groups'"):
        norm_layer("group_norm", group=8)
