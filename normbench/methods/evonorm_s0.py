r"""EvoNorm-S0: a sample-based layer of norm and nonlinearity found by evolution.

    y = gamma·x·sigmoid(v·x)/√(σ²_g + eps) + beta

σ²_g (biased) per sample over H,W and the channels of a group; x is not centred. v, one per channel
and 1 at first, is learned. The layer is its own nonlinearity and replaces the activation at the
slot. Where none follows it only scales and shifts, y = gamma·x + beta, as in the authors' code and
in timm: their ResNets do not normalize at the end of a residual branch.

Where C is not divisible by `groups`, the largest divisor of C below it is used, as the authors'
code does (timm refuses). eps is the slot's; the authors' is 1e-5.

Liu, Brock, Simonyan & Le, "Evolving Normalization-Activation Layers", NeurIPS 2020,
arXiv:2004.02967.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normbench.kernels.channels import ChannelNorm, as_float
from normbench.kernels.grouped import largest_group_count
from normbench.kernels.sample_wise import group_variance, per_channel
from normbench.registry import Citation, Param, register


@register(
    "evonorm_s0",
    title="EvoNorm-S0",
    family="group",
    equation=r"y = \gamma\,\frac{x\,\sigma(v x)}{\sqrt{\sigma^2_{g}+\epsilon}}+\beta",
    params={
        "groups": Param("number of groups; at most this many where C % groups ≠ 0", int, minimum=1),
        "eps": Param("added to the variance, inside the root", minimum=0, exclusive_minimum=True),
    },
    citation=Citation(
        "Evolving Normalization-Activation Layers",
        ("Liu, Hanxiao", "Brock, Andy", "Simonyan, Karen", "Le, Quoc V."),
        2020,
        "Advances in Neural Information Processing Systems (NeurIPS)",
        "2004.02967",
    ),
    consumes_activation=True,
    policy="Replaces the activation at the slot, whichever it is; without one it does not "
    "normalize, y = gamma·x + beta. Groups as group_norm, refused where one pools a single value.",
)
class EvoNormS0(ChannelNorm):
    """Gates each value by a sigmoid of itself and divides by the deviation of its group."""

    weight: nn.Parameter
    bias: nn.Parameter
    v: nn.Parameter | None

    def __init__(
        self,
        num_features: int,
        *,
        act: nn.Module | None = None,
        groups: int = 32,
        eps: float | None = None,
    ) -> None:
        super().__init__(num_features, eps, True)
        self.groups = largest_group_count(num_features, groups)
        self.act = act  # never called: kept for whoever puts another method into this slot
        v = None if act is None else nn.Parameter(torch.ones(num_features))
        self.register_parameter("v", v)

    def forward(self, x: Tensor) -> Tensor:
        """N,C,* to the same shape. Raises ValueError where a group has a single value."""
        self.check(x)
        wide = as_float(x)
        gamma, beta = per_channel(self.weight, x), per_channel(self.bias, x)
        if self.v is None:
            return torch.addcmul(beta, wide, gamma).to(x.dtype)
        scale = gamma * torch.rsqrt(group_variance(wide, self.groups) + self.eps)
        gated = wide * torch.sigmoid(wide * per_channel(self.v, x))
        return torch.addcmul(beta, gated, scale).to(x.dtype)

    def extra_repr(self) -> str:
        """Also the number of groups in use, and whether it is only affine."""
        return f"{super().extra_repr()}, groups={self.groups}, apply_act={self.v is not None}"
