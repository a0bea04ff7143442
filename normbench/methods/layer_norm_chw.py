r"""Layer Normalization over channels and positions.

    y = gamma·(x − μ)/√(σ² + eps) + beta

μ and σ² (biased) per sample over C,H,W; gamma and beta per channel, as convolutional nets use it
(group normalization with one group). `layer_norm_channels` is the other layer norm for images.

Ba, Kiros & Hinton, "Layer Normalization", 2016, arXiv:1607.06450.
"""

from __future__ import annotations

from torch import Tensor, nn

from normbench.kernels.channels import ChannelNorm
from normbench.kernels.grouped import group_norm
from normbench.registry import Citation, Param, register


@register(
    "layer_norm_chw",
    title="Layer Normalization over C, H, W",
    family="layer",
    equation=r"y = \gamma\,\frac{x-\mu_{CHW}}{\sqrt{\sigma^2_{CHW}+\epsilon}}+\beta",
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
    policy="N,C input pools over C; a sample with a single value is refused.",
)
class LayerNormCHW(ChannelNorm):
    """Normalizes each sample by the mean and variance of all its channels and positions."""

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
        """N,C,* to the same shape. Raises ValueError where a sample is a single value."""
        self.check(x)
        return group_norm(x, 1, self.weight, self.bias, self.eps)
