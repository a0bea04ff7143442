"""Small networks that train in seconds on a CPU, registered into timm.

Both are 10-layer residual networks (He et al., 2016, arXiv 1512.03385): a stem, four stages of one
basic block each, a linear classifier. They differ in stem and strides, and so in how far the maps
shrink. At 28 px

- `nb_resnet10_1x1` ends in 1×1 maps, so at the last slots a batch of 2 pools 2 values per channel;
- `nb_resnet10_4x4` ends in 4×4 maps, so the same batch pools 32.

Batch statistics of 2 values turn BatchNorm into a sign function. The pair tells that failure from
everything else a small batch does.
"""

from __future__ import annotations

from typing import Any

import timm
from timm.models import register_model
from torch import Tensor, nn

WIDTHS = (16, 32, 64, 128)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut, each convolution followed by its norm slot."""

    def __init__(self, in_chs: int, out_chs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chs, out_chs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_chs)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out_chs, out_chs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_chs)
        self.act2 = nn.ReLU(inplace=True)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_chs != out_chs:
            conv = nn.Conv2d(in_chs, out_chs, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(out_chs))

    def forward(self, x: Tensor) -> Tensor:
        """Map N,in_chs,H,W to N,out_chs,H/stride,W/stride."""
        shortcut = self.downsample(x)
        x = self.act1(self.bn1(self.conv1(x)))
        return self.act2(self.bn2(self.conv2(x)) + shortcut)  # type: ignore[no-any-return]


class ResNet10(nn.Module):
    """Stem, four one-block stages, global average pooling, linear classifier."""

    def __init__(
        self,
        stem: tuple[int, int],
        strides: tuple[int, int, int, int],
        in_chans: int = 1,
        num_classes: int = 10,
        widths: tuple[int, int, int, int] = WIDTHS,
    ) -> None:
        """Build it.

        Args:
            stem: kernel size and stride of the first convolution.
            strides: of the four stages.
            in_chans: input channels.
            num_classes: outputs.
            widths: channels of the four stages.
        """
        super().__init__()
        kernel, stride = stem
        self.num_classes = num_classes
        self.num_features = widths[-1]
        self.conv1 = nn.Conv2d(in_chans, widths[0], kernel, stride, kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.act1 = nn.ReLU(inplace=True)
        ins = (widths[0], *widths[:-1])
        self.stages = nn.Sequential(*map(BasicBlock, ins, widths, strides))
        self.fc = nn.Linear(widths[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map N,in_chans,H,W images to N,num_classes logits."""
        x = self.stages(self.act1(self.bn1(self.conv1(x))))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


def _create(stem: tuple[int, int], strides: tuple[int, int, int, int], kwargs: Any) -> ResNet10:
    # timm.create_model hands every factory these three; there are no weights to load.
    for key in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
        kwargs.pop(key, None)
    model = ResNet10(stem, strides, **kwargs)
    model.default_cfg = {  # type: ignore[assignment]  # timm's convention, a plain attribute
        "input_size": (model.conv1.in_channels, 28, 28),
        "num_classes": model.num_classes,
        "first_conv": "conv1",
        "classifier": "fc",
    }
    return model


def nb_resnet10_1x1(pretrained: bool = False, **kwargs: Any) -> ResNet10:
    """10-layer ResNet whose maps at 28 px are 7, 7, 4, 2, 1 wide."""
    _refuse_pretrained(pretrained)
    return _create((5, 4), (1, 2, 2, 2), kwargs)


def nb_resnet10_4x4(pretrained: bool = False, **kwargs: Any) -> ResNet10:
    """10-layer ResNet whose maps at 28 px are 14, 14, 7, 4, 4 wide."""
    _refuse_pretrained(pretrained)
    return _create((3, 2), (1, 2, 2, 1), kwargs)


def _refuse_pretrained(pretrained: bool) -> None:
    if pretrained:
        raise ValueError("normbench's own networks have no pretrained weights")


for _factory in (nb_resnet10_1x1, nb_resnet10_4x4):
    if not timm.is_model(_factory.__name__):  # a reload of this module must not warn
        register_model(_factory)
