r"""Cosine Normalization.

    z = w·p/(√(‖w‖² + eps)·√(‖p‖² + eps)),    y = gamma·z + beta  at the slots

for each filter w and the patch p that it meets, over the channels of its group: the cosine between
the two, −1 to 1. Padding belongs to the patch. eps is no part of the equation; inside the roots it
gives a patch of zeros the cosine 0 with a finite gradient. A bias of the convolution is added to z.

Every convolution is replaced by a `CosineConv`, since a patch's norm is no property of the weight;
surgery cannot undo that.

The paper's other form, the cosine of centred vectors, is not built.

Luo, Zhan, Wang & Yang, "Cosine Normalization: Using Cosine Similarity Instead of Dot Product in
Neural Networks", ICANN 2018, arXiv:1702.05870.
"""

from __future__ import annotations

from itertools import chain

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from normbench.kernels.channels import as_float
from normbench.methods.none import NoNorm
from normbench.registry import Citation, Param, UnsupportedError, register

CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
PLAIN = (nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward)


class CosineConv(nn.Module):
    """A convolution that gives the cosine of filter and patch in place of their product.

    Args:
        conv: its parameters become this module's, with their names; stride, padding (of every
            mode, and timm's "same"), dilation and groups are its own.
        eps: added to both squared norms.

    Raises:
        UnsupportedError: for a subclass with a forward of its own.
    """

    def __init__(self, conv: nn.Conv1d | nn.Conv2d | nn.Conv3d, eps: float) -> None:
        super().__init__()
        # Told by its name: the catalogue is read without timm.
        self.pads_same = type(conv).__name__ == "Conv2dSame"
        if type(conv).forward not in PLAIN and not self.pads_same:
            raise UnsupportedError(f"cosine_norm cannot replace a {type(conv).__name__}")
        self.weight, self.bias, self.eps = conv.weight, conv.bias, eps
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        self.kernel_size, self.stride, self.dilation = conv.kernel_size, conv.stride, conv.dilation
        self.groups, self.padding, self.padding_mode = conv.groups, conv.padding, conv.padding_mode
        self.around = list(conv._reversed_padding_repeated_twice)

    def forward(self, x: Tensor) -> Tensor:
        """N,C,* to what the convolution gives: cosines, plus its bias."""
        if self.pads_same:
            x = F.pad(x, self._to_same(x))
        elif self.padding_mode != "zeros":
            x = F.pad(x, self.around, mode=self.padding_mode)
        weight = as_float(self.weight)
        length = torch.rsqrt(weight.flatten(1).square().sum(1) + self.eps)
        unit = (weight * length.view(-1, *[1] * (weight.dim() - 1))).to(self.weight.dtype)
        product = self._convolve(x, unit)
        with torch.autocast(x.device.type, enabled=False):
            grouped = (len(x), self.groups, -1, *x.shape[2:])
            squares = as_float(x).square().reshape(grouped).sum(2)
            ones = torch.ones_like(weight[: self.groups, :1])
            inverse = torch.rsqrt(self._convolve(squares, ones) + self.eps)
        if self.groups > 1:
            inverse = inverse.repeat_interleave(self.out_channels // self.groups, 1)
        y = (product * inverse).to(product.dtype)
        if self.bias is None:
            return y
        return y + self.bias.view(-1, *[1] * (weight.dim() - 2)).to(y.dtype)

    def _to_same(self, x: Tensor) -> list[int]:
        """Padding of each side, last dim first, for ⌈size/stride⌉ outputs as in TensorFlow."""
        missing = [
            max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
            for size, k, s, d in zip(
                x.shape[2:], self.kernel_size, self.stride, self.dilation, strict=True
            )
        ]
        return list(chain(*((total // 2, total - total // 2) for total in reversed(missing))))

    def _convolve(self, x: Tensor, weight: Tensor) -> Tensor:
        padding = self.padding if self.padding_mode == "zeros" else 0
        y: Tensor = CONVOLVE[weight.dim() - 2](
            x, weight, None, self.stride, padding, self.dilation, self.groups
        )
        return y

    def extra_repr(self) -> str:
        """What `print(module)` shows between the brackets."""
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding}, groups={self.groups}, eps={self.eps:g}"
        )


def replace(conv: nn.Conv1d | nn.Conv2d | nn.Conv3d, eps: float, **_: object) -> CosineConv:
    """The replacement of a convolution."""
    return CosineConv(conv, eps)


@register(
    "cosine_norm",
    title="Cosine Normalization",
    family="weight",
    equation=r"y = \gamma\,\frac{w\cdot p}{\Vert w\Vert\,\Vert p\Vert}+\beta",
    params={
        "eps": Param("added to both squared norms", minimum=0, exclusive_minimum=True),
        "affine": Param("learn scale and shift at the slots", kind=bool),
    },
    citation=Citation(
        "Cosine Normalization: Using Cosine Similarity Instead of Dot Product in Neural Networks",
        ("Luo, Chunjie", "Zhan, Jianfeng", "Wang, Lei", "Yang, Qiang"),
        2018,
        "International Conference on Artificial Neural Networks (ICANN)",
        "1702.05870",
    ),
    weight=replace,
    policy="Slots only scale and shift, and are defined for every input. Linear layers, and "
    "convolutions whose filters are a single number or that standardize, stay as they are; one of "
    "an unknown subclass is refused.",
)
class CosineNorm(NoNorm):
    """Replaces products of filter and patch by their cosine; slots scale and shift."""

    def __init__(
        self,
        num_features: int,
        *,
        act: nn.Module | None = None,
        eps: float = 1e-5,
        affine: bool | None = None,
    ) -> None:
        super().__init__(num_features, affine=affine is not False)
        self.eps = eps
