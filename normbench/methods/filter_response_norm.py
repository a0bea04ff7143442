r"""Filter Response Normalization with the Thresholded Linear Unit.

    y = gamma·x/√(ν² + |eps|) + beta,  ν² = mean_HW x²
    out = max(y, tau)

ν² per sample and channel; no mean is subtracted. tau, one per channel and 0 at first, is learned:
the TLU stands in the place of whatever activation follows the slot, as a ReLU with a learned
threshold. Where none follows there is no tau, out = y.

eps is the paper's constant 1e-6 (timm's is 1e-5). For 1×1 maps, where y is little more than
gamma·sign(x) + beta, the paper learns it, from 1e-4. A layer does not know its maps when it is
built, so this is left to the user: `learn_eps` puts a learned eps, one number a layer, into every
slot, whatever its maps.

Singh & Krishnan, "Filter Response Normalization Layer: Eliminating Batch Dependence in the
Training of Deep Neural Networks", CVPR 2020, arXiv:1911.09737.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normbench.kernels.channels import ChannelNorm, as_float
from normbench.kernels.sample_wise import per_channel, space_mean_square
from normbench.registry import Citation, Param, register

LEARNED_EPS = 1e-4
"""Where a learned eps starts."""


@register(
    "filter_response_norm",
    title="Filter Response Normalization with Thresholded Linear Unit",
    family="instance",
    equation=r"\mathrm{out} = \max\Big(\gamma\,\frac{x}{\sqrt{\nu^2+|\epsilon|}}+\beta,\ \tau\Big)"
    r",\quad \nu^2=\frac{1}{HW}\sum_{hw} x^2",
    params={
        "eps": Param(
            "added to the mean square, inside the root", minimum=0, exclusive_minimum=True
        ),
        "learn_eps": Param("learn |eps| instead, one number a layer, from 1e-4", kind=bool),
    },
    citation=Citation(
        "Filter Response Normalization Layer: Eliminating Batch Dependence in the Training of "
        "Deep Neural Networks",
        ("Singh, Saurabh", "Krishnan, Shankar"),
        2020,
        "IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)",
        "1911.09737",
    ),
    consumes_activation=True,
    policy="The TLU replaces the activation at the slot, whichever it is; without one there is no "
    "TLU. 1×1 maps and N,C input leave little but the sign of the input, smoothed by `learn_eps`.",
)
class FilterResponseNorm(ChannelNorm):
    """Scales each channel of each sample by its root mean square, then cuts it off below tau."""

    weight: nn.Parameter
    bias: nn.Parameter
    tau: nn.Parameter | None
    learned_eps: nn.Parameter | None

    def __init__(
        self,
        num_features: int,
        *,
        act: nn.Module | None = None,
        eps: float = 1e-6,
        learn_eps: bool = False,
    ) -> None:
        super().__init__(num_features, eps, True)
        self.act = act  # never called: kept for whoever puts another method into this slot
        tau = None if act is None else nn.Parameter(torch.zeros(num_features))
        self.register_parameter("tau", tau)
        learned = nn.Parameter(torch.tensor([LEARNED_EPS])) if learn_eps else None
        self.register_parameter("learned_eps", learned)

    def forward(self, x: Tensor) -> Tensor:
        """N,C,* to the same shape."""
        self.check(x)
        wide = as_float(x)
        eps = self.eps if self.learned_eps is None else as_float(self.learned_eps.abs())
        eps = eps if isinstance(eps, float) else per_channel(eps, x)
        scale = per_channel(self.weight, x) * torch.rsqrt(space_mean_square(wide) + eps)
        shift = per_channel(self.bias, x)
        if self.tau is None:
            return torch.addcmul(shift, wide, scale).to(x.dtype)
        # max(y, τ) = ReLU(y − τ) + τ, whose backward costs a third of the maximum's.
        tau = per_channel(self.tau, x)
        return (torch.addcmul(shift - tau, wide, scale).relu() + tau).to(x.dtype)

    def extra_repr(self) -> str:
        """Also whether there is a threshold, and what is learned of eps."""
        learned = self.learned_eps is not None
        return f"{super().extra_repr()}, tlu={self.tau is not None}, learn_eps={learned}"
