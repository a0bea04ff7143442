r"""Instance Normalization.

    y = gamma·(x − μ)/√(σ² + eps) + beta

μ and σ² (biased) per sample and channel over H,W. Undefined for 1×1 maps and for N,C inputs.

Ulyanov, Vedaldi & Lempitsky, "Instance Normalization: The Missing Ingredient for Fast
Stylization", 2016, arXiv:1607.08022.
"""

from __future__ import annotations

from torch import Tensor, nn

from normbench.kernels.channels import ChannelNorm, keep_format
from normbench.kernels.grouped import group_norm
from normbench.registry import Citation, Param, register


@register(
    "instance_norm",
    title="Instance Normalization",
    family="instance",
    equation=r"y = \gamma\,\frac{x-\mu_{HW}}{\sqrt{\sigma^2_{HW}+\epsilon}}+\beta",
    params={
        "eps": Param("added to the variance, inside the root", minimum=0, exclusive_minimum=True),
        "affine": Param("learn gamma and beta", kind=bool),
    },
    citation=Citation(
        "Instance Normalization: The Missing Ingredient for Fast Stylization",
        ("Ulyanov, Dmitry", "Vedaldi, Andrea", "Lempitsky, Victor"),
        2016,
        "arXiv preprint",
        "1607.08022",
    ),
    policy="1×1 maps and N,C input leave one value per channel and sample and are refused.",
)
class InstanceNorm(ChannelNorm):
    """Normalizes each channel of each sample by its own mean and variance over positions."""

    def __init__(
        self,
        num_features: int,
        *,
        act: nn.Module | None = None,
        eps: float | None = None,
        affine: bool | None = None,
    ) -> None:
        super().__init__(num_features, eps, affine)

    def forward(self, x: Tensor) -> Tensor:
        """N,C,* to the same shape. Raises ValueError where a map is a single value."""
        self.check(x)
        # The native op with one channel a group is ten times slower on channels_last input than
        # two copies to and from the other layout.
        y = group_norm(x.contiguous(), self.num_features, self.weight, self.bias, self.eps)
        return keep_format(y, x)
