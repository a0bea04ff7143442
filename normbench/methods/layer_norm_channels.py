r"""Layer Normalization over the channels of each position, as in ConvNeXt.

    y = gamma·(x − μ)/√(σ² + eps) + beta

μ and σ² (biased) over C alone, for every sample and position; gamma and beta per channel.

Ba, Kiros & Hinton, "Layer Normalization", 2016, arXiv:1607.06450.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normbench.kernels.channels import HALF, ChannelNorm, as_float
from normbench.registry import Citation, Param, register


@register(
    "layer_norm_channels",
    title="Layer Normalization over C",
    family="layer",
    equation=r"y = \gamma\,\frac{x-\mu_{C}}{\sqrt{\sigma^2_{C}+\epsilon}}+\beta",
    params={
        "eps": Param("added to the variance, inside the root", minimum=0, exclusive_minimum=True),
        "affine": Param("learn gamma and beta", kind=bool),
    },
    citation=Citation(
        "Layer Normalization",
        ("Ba, Jimmy Lei", "Kiros, Jamie Ryan", "Hinton, Geoffrey E."),
        2016,
        "arXiv preprint",
        "1607.06450",
    ),
    policy="Refuses a single channel; the size of the maps does not matter.",
)
class LayerNormChannels(ChannelNorm):
    """Normalizes every position of every sample by the mean and variance over its channels."""

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
        """N,C,* to the same shape, laid out channels last. Raises ValueError for one channel."""
        self.check(x)
        if self.num_features < 2:
            raise ValueError(
                "a mean and variance over channels need at least 2 channels, got 1: "
                "with 1 value the values per channel do not matter"
            )
        weight: Tensor | None = self.weight
        bias: Tensor | None = self.bias
        if x.dtype in HALF and weight is not None and bias is not None:
            weight, bias = weight.float(), bias.float()
        wide = as_float(x).movedim(1, -1)
        y = torch.layer_norm(wide, (self.num_features,), weight, bias, self.eps)
        return y.movedim(-1, 1).to(x.dtype)
