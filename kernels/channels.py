"""What every layer with one weight and one bias per channel shares: its parameters and checks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

HALF = (torch.float16, torch.bfloat16)
"""Types whose statistics are computed in float32."""


class ChannelNorm(nn.Module):
    """Affine parameters gamma and beta, 1-D as in `nn.BatchNorm2d`, and checks of the input.

    Args:
        num_features: channels C of the N,C,* input, 2 to 5 dims.
        eps: None stands for the usual 1e-5.
        affine: None stands for True; if False, `weight` and `bias` are None.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None

    def __init__(self, num_features: int, eps: float | None, affine: bool | None) -> None:
        super().__init__()
        self.num_features = num_features
        self.eps = 1e-5 if eps is None else eps
        keep = affine is not False
        self.register_parameter("weight", nn.Parameter(torch.ones(num_features)) if keep else None)
        self.register_parameter("bias", nn.Parameter(torch.zeros(num_features)) if keep else None)

    def check(self, x: Tensor) -> None:
        """Raises ValueError if `x` is not N,C,* of 2 to 5 dims with this layer's C."""
        if not 2 <= x.dim() <= 5 or x.shape[1] != self.num_features:
            raise ValueError(
                f"{type(self).__name__} expects N,C,* input of 2 to 5 dims with "
                f"C = {self.num_features}, got shape {tuple(x.shape)}"
            )

    def check_batch(self, x: Tensor) -> None:
        """As `check`; also raises if a batch statistic would pool fewer than two values."""
        self.check(x)
        values = x.shape[0] * x.shape[2:].numel()
        if values < 2:
            raise ValueError(
                f"{type(self).__name__} in training needs at least 2 values per channel (N·H·W) "
                f"to have a variance, got {values}: input of shape {tuple(x.shape)}"
            )

    def extra_repr(self) -> str:
        """What `print(layer)` shows between the brackets."""
        return f"{self.num_features}, eps={self.eps:g}, affine={self.weight is not None}"


def as_float(x: Tensor) -> Tensor:
    """The tensor in float32 if it is of a half type, else as it is."""
    return x.float() if x.dtype in HALF else x


def keep_format(y: Tensor, x: Tensor) -> Tensor:
    """`y`, made channels_last where `x` is and a native op on its device lost that."""
    last = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    if x.dim() >= 4 and not x.is_contiguous() and x.is_contiguous(memory_format=last):
        return y.contiguous(memory_format=last)
    return y


def as_layout_of(t: Tensor, x: Tensor) -> Tensor:
    """`t` laid out as a native op wants it: channels_last where `x` is and the CPU knows it."""
    last = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    keep = x.dim() >= 4 and not x.is_cuda and x.is_contiguous(memory_format=last)
    if keep and not x.is_contiguous():
        return t.contiguous(memory_format=last)
    return t.contiguous()
