r"""Weight Standardization, with Group Normalization at the slots.

    Ŵ = (W − μ_w)/(σ_w + 1e-5)

per output filter over its fan-in, σ_w unbiased and eps outside the root, as in the authors' code
(timm's StdConv2d takes the biased variance and 1e-6 inside the root). Every convolution with a
fan-in above one is standardized; its own weight stays the learned parameter. The slots get
`group_norm`.

Qiao, Wang, Liu, Shen & Yuille, "Micro-Batch Training with Batch-Channel Normalization and Weight
Standardization", 2019, arXiv:1903.10520.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from normbench.methods.group_norm import GroupNorm, observe
from normbench.registry import Citation, Param, register

EPS = 1e-5
"""Added to the standard deviation of a filter."""


class Standardized(nn.Module):
    """The parametrization: a weight to its standardized form, filter by filter."""

    def forward(self, weight: Tensor) -> Tensor:
        """(W − μ_w)/(σ_w + 1e-5) for a weight of shape O,I,*; computed in float32 or wider."""
        flat = weight.flatten(1)
        wide = flat.float() if flat.dtype in (torch.float16, torch.bfloat16) else flat
        std, mean = torch.std_mean(wide, dim=1, keepdim=True)
        return ((wide - mean) / (std + EPS)).to(weight.dtype).view_as(weight)


def standardize(conv: nn.Module, **_: object) -> None:
    """Puts the parametrization on a convolution, unless its filters are single numbers.

    The method's parameters concern the norm at the slots and are not used here.
    """
    weight = conv.weight
    if not isinstance(weight, Tensor) or weight[0].numel() < 2:
        return
    parametrize.register_parametrization(conv, "weight", Standardized())


@register(
    "weight_standardization",
    title="Weight Standardization with Group Normalization",
    family="weight",
    equation=r"\hat W_{o} = \frac{W_{o}-\mu_{o}}{\sigma_{o}+\epsilon},\quad"
    r" y = \mathrm{GN}(\hat W * x)",
    params={
        "groups": Param("number of groups G; at most this many where C % G ≠ 0", int, minimum=1),
        "eps": Param("added to the variance of a group", minimum=0, exclusive_minimum=True),
        "affine": Param("learn gamma and beta", kind=bool),
    },
    citation=Citation(
        "Micro-Batch Training with Batch-Channel Normalization and Weight Standardization",
        ("Qiao, Siyuan", "Wang, Huiyu", "Liu, Chenxi", "Shen, Wei", "Yuille, Alan"),
        2019,
        "arXiv preprint",
        "1903.10520",
    ),
    weight=standardize,
    observe=observe,
    policy="At slots as group_norm. Convolutions whose filters are a single number, and those "
    "that standardize already, are left alone.",
)
class WeightStandardizedGroupNorm(GroupNorm):
    """Standardizes the filters of every convolution; group normalization at the slots."""
