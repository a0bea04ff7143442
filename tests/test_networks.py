from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

import normbench.networks  # registers the models


@pytest.mark.parametrize(
    ("name", "maps"), [("nb_resnet10_1x1", [7, 7, 4, 2, 1]), ("nb_resnet10_4x4", [14, 14, 7, 4, 4])]
)
def test_maps_shrink_as_the_name_says(name: str, maps: list[int]) -> None:
    model = timm.create_model(name)
    seen: list[int] = []
    for module in (model.bn1, *(stage.bn2 for stage in model.stages)):
        module.register_forward_hook(lambda m, i, out: seen.append(out.shape[-1]))
    model(torch.zeros(2, 1, 28, 28))
    assert seen == maps


@pytest.mark.parametrize("name", ["nb_resnet10_1x1", "nb_resnet10_4x4"])
def test_has_ten_layers_with_weights(name: str) -> None:
    model = timm.create_model(name, in_chans=3, num_classes=7)
    on_main_path = [
        m
        for path, m in model.named_modules()
        if isinstance(m, (nn.Conv2d, nn.Linear)) and "downsample" not in path
    ]
    assert len(on_main_path) == 10
    assert model(torch.zeros(2, 3, 28, 28)).shape == (2, 7)


def test_refuses_pretrained_weights() -> None:
    with pytest.raises(ValueError, match="no pretrained weights"):
        normbench.networks.nb_resnet10_1x1(pretrained=True)
