r"""Root-mean-square normalization over the channels of each position.

    y = gamma·x/√(mean_C x² + eps)

No mean is subtracted and nothing is added: gamma alone, no beta. The paper writes no eps; 1e-6
inside the root is timm's and most language models' (the authors' code adds 1e-8 to the root mean
square). The paper normalizes vectors; on maps each position is one, as in timm's RmsNorm2d.

Zhang & Sennrich, "Root Mean Square Layer Normalization", NeurIPS 2019, arXiv:1910.07467.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normbench.kernels.channels import ChannelNorm, as_float
from normbench.kernels.sample_wise import per_channel
from normbench.registry import Citation, Param, register


@register(
    "rms_norm",
    title="Root Mean Square Normalization",
    family="layer",
    equation=r"y = \gamma\,\frac{x}{\sqrt{\frac{1}{C}\sum_{c} x_c^2+\epsilon}}",
    params={
        "eps": Param(
            "added to the mean square, inside the root", minimum=0, exclusive_minimum=True
        ),
        "affine": Param("learn gamma; there is no beta", kind=bool),
    },
    citation=Citation(
        "Root Mean Square Layer Normalization",
        ("Zhang, Biao", "Sennrich, Rico"),
        2019,
        "Advances in Neural Information Processing Systems (NeurIPS)",
        "1910.07467",
    ),
    policy="Defined for every input, whatever the size of the maps; a single channel keeps only "
    "its sign. The beta of the slot is dropped.",
)
class RmsNorm(ChannelNorm):
    """Scales every position of every sample to a root mean square of one over its channels."""

    def __init__(
        self,
        num_features: int,
        *,
        act: nn.Module | None = None,
        eps: float = 1e-6,
        affine: bool | None = None,
    ) -> None:
        super().__init__(num_features, eps, affine)
        self.bias = None

    def forward(self, x: Tensor) -> Tensor:
        """N,C,* to the same shape."""
        self.check(x)
        wide = as_float(x)
        y = wide * torch.rsqrt(wide.square().mean(1, keepdim=True) + self.eps)
        if self.weight is not None:
            y = y * per_channel(self.weight, x)
        return y.to(x.dtype)
