r"""No normalization: the baseline that every other method has to beat.

y = x,  or  gamma·x + beta  with `affine`
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normbench.kernels.channels import ChannelNorm
from normbench.registry import Param, register


@register(
    "none",
    title="No normalization",
    family="none",
    equation=r"y = x",
    params={"affine": Param("scale and shift each channel: y = gamma·x + beta", kind=bool)},
    policy="Defined for every input.",
)
class NoNorm(ChannelNorm):
    """The input as it is, or scaled and shifted per channel; no statistics, no state."""

    def __init__(
        self, num_features: int, *, act: nn.Module | None = None, affine: bool = False
    ) -> None:
        super().__init__(num_features, None, affine)

    def forward(self, x: Tensor) -> Tensor:
        """N,C,* to the same shape."""
        self.check(x)
        if self.weight is None or self.bias is None:
            return x
        shape = (1, -1) + (1,) * (x.dim() - 2)
        return torch.addcmul(self.bias.view(shape), x, self.weight.view(shape)).to(x.dtype)

    def extra_repr(self) -> str:
        """There is no eps to show."""
        return f"{self.num_features}, affine={self.weight is not None}"
