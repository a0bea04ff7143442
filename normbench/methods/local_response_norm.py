r"""Local Response Normalization, across the channels, as in AlexNet.

    y_c = x_c/(k + alpha·Σ_j x_j²)^beta,  j from c − (size−1)/2 to c + (size−1)/2

At the edges the sum is over the channels that there are. alpha multiplies the sum, as in the
paper; `nn.LocalResponseNorm` divides its alpha by size, and its k is 1 unless given. In the paper
nothing is learned; `affine` adds gamma and beta as other methods have them at the slot.

Krizhevsky, Sutskever & Hinton, "ImageNet Classification with Deep Convolutional Neural Networks",
NeurIPS 2012.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normbench.kernels.channels import ChannelNorm, as_float
from normbench.kernels.local_response import local_response_norm
from normbench.kernels.sample_wise import per_channel
from normbench.registry import Citation, Param, RegistryError, register


@register(
    "local_response_norm",
    title="Local Response Normalization",
    family="local",
    equation=r"y_c = \frac{x_c}{\big(k+\alpha\sum_{j} x_j^2\big)^{\beta}},"
    r"\quad |j-c|\le\frac{n-1}{2}",
    params={
        "size": Param("channels n in the window, an odd number", int, minimum=1),
        "alpha": Param("factor of the sum of squares, not divided by size", minimum=0),
        "beta": Param("exponent", minimum=0),
        "k": Param("added to the sum", minimum=0, exclusive_minimum=True),
        "affine": Param("scale and shift each channel afterwards; the paper does not", kind=bool),
    },
    citation=Citation(
        "ImageNet Classification with Deep Convolutional Neural Networks",
        ("Krizhevsky, Alex", "Sutskever, Ilya", "Hinton, Geoffrey E."),
        2012,
        "Advances in Neural Information Processing Systems (NeurIPS)",
    ),
    policy="Defined for every input; with the paper's constants it is nearly x/k^beta = 0.59·x "
    "while values are of order one. The gamma and beta of the slot are dropped.",
)
class LocalResponseNorm(ChannelNorm):
    """Divides each value by a power of the sum of squares of the channels around it."""

    def __init__(
        self,
        num_features: int,
        *,
        act: nn.Module | None = None,
        size: int = 5,
        alpha: float = 1e-4,
        beta: float = 0.75,
        k: float = 2.0,
        affine: bool = False,
    ) -> None:
        super().__init__(num_features, None, affine)
        if size % 2 == 0:
            raise RegistryError(f"local_response_norm: size is {size}; expected an odd number")
        self.size, self.alpha, self.beta, self.k = size, alpha, beta, k

    def forward(self, x: Tensor) -> Tensor:
        """N,C,* to the same shape."""
        self.check(x)
        y = local_response_norm(as_float(x), self.size // 2, self.alpha, self.beta, self.k)
        if self.weight is not None and self.bias is not None:
            y = torch.addcmul(per_channel(self.bias, x), y, per_channel(self.weight, x))
        return y.to(x.dtype)

    def extra_repr(self) -> str:
        """The constants; there is no eps to show."""
        return (
            f"{self.num_features}, size={self.size}, alpha={self.alpha:g}, beta={self.beta:g}, "
            f"k={self.k:g}, affine={self.weight is not None}"
        )
