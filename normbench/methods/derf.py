r"""Dynamic erf: the Gauss error function in the place of a normalization.

    y = gamma·erf(α·x + s) + beta

α and s are one learned number each a layer, 0.5 and 0 at first; gamma and beta per channel belong
to the method. There are no statistics, as in dyt.

Chen, Lu, Zhu, Sun & Liu, "Stronger Normalization-Free Transformers", CVPR 2026, arXiv:2512.10938.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normbench.kernels.channels import ChannelNorm, as_float
from normbench.kernels.sample_wise import per_channel
from normbench.registry import Citation, Param, register


@register(
    "derf",
    title="Dynamic erf (Derf)",
    family="pointwise",
    equation=r"y = \gamma\,\mathrm{erf}(\alpha x+s)+\beta",
    params={
        "alpha": Param("alpha to start from", minimum=0, exclusive_minimum=True),
        "shift": Param("s to start from"),
    },
    citation=Citation(
        "Stronger Normalization-Free Transformers",
        ("Chen, Mingzhi", "Lu, Taiming", "Zhu, Jiachen", "Sun, Mingjie", "Liu, Zhuang"),
        2026,
        "IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)",
        "2512.10938",
    ),
    policy="Defined for every input; gamma and beta are learned whatever the slot has.",
)
class DynamicErf(ChannelNorm):
    """Squashes every value by an erf of learned steepness and shift; no statistics, no state."""

    weight: nn.Parameter
    bias: nn.Parameter

    def __init__(
        self,
        num_features: int,
        *,
        act: nn.Module | None = None,
        alpha: float = 0.5,
        shift: float = 0.0,
    ) -> None:
        super().__init__(num_features, None, True)
        self.alpha = nn.Parameter(torch.tensor([alpha]))
        self.shift = nn.Parameter(torch.tensor([shift]))

    def forward(self, x: Tensor) -> Tensor:
        """N,C,* to the same shape."""
        self.check(x)
        alpha, shift = per_channel(self.alpha, x), per_channel(self.shift, x)
        squashed = torch.erf(torch.addcmul(shift, as_float(x), alpha))
        gamma, beta = per_channel(self.weight, x), per_channel(self.bias, x)
        return torch.addcmul(beta, squashed, gamma).to(x.dtype)

    def extra_repr(self) -> str:
        """There is no eps to show."""
        return f"{self.num_features}"
