r"""Dynamic tanh: a bounded function in the place of a normalization.

    y = gamma·tanh(α·x) + beta

α is one learned number a layer, 0.5 at first; gamma and beta per channel belong to the method.
There are no statistics, so nothing depends on other values, and nothing normalizes.

Zhu, Chen, He, LeCun & Liu, "Transformers without Normalization", CVPR 2025, arXiv:2503.10622.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normbench.kernels.channels import ChannelNorm, as_float
from normbench.kernels.sample_wise import per_channel
from normbench.registry import Citation, Param, register


@register(
    "dyt",
    title="Dynamic Tanh (DyT)",
    family="pointwise",
    equation=r"y = \gamma\,\tanh(\alpha x)+\beta",
    params={"alpha": Param("alpha to start from", minimum=0, exclusive_minimum=True)},
    citation=Citation(
        "Transformers without Normalization",
        ("Zhu, Jiachen", "Chen, Xinlei", "He, Kaiming", "LeCun, Yann", "Liu, Zhuang"),
        2025,
        "IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)",
        "2503.10622",
    ),
    policy="Defined for every input; gamma and beta are learned whatever the slot has.",
)
class DynamicTanh(ChannelNorm):
    """Squashes every value by a tanh of learned steepness; no statistics, no state."""

    weight: nn.Parameter
    bias: nn.Parameter

    def __init__(
        self, num_features: int, *, act: nn.Module | None = None, alpha: float = 0.5
    ) -> None:
        super().__init__(num_features, None, True)
        self.alpha = nn.Parameter(torch.tensor([alpha]))

    def forward(self, x: Tensor) -> Tensor:
        """N,C,* to the same shape."""
        self.check(x)
        squashed = torch.tanh(as_float(x) * per_channel(self.alpha, x))
        gamma, beta = per_channel(self.weight, x), per_channel(self.bias, x)
        return torch.addcmul(beta, squashed, gamma).to(x.dtype)

    def extra_repr(self) -> str:
        """There is no eps to show."""
        return f"{self.num_features}"
