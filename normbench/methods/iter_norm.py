r"""Iterative Normalization: whitening by Newton's iteration.

    y = gamma·W(x − μ) + beta,  W = P_T/√tr Σ,  Σ = cov(x) + eps·1
    P_0 = 1,  P_k = ½(3·P_(k−1) − P_(k−1)³·Σ/tr Σ)

for each group of channels, over N,H,W of the batch in training; in evaluation the running averages
of μ and of W. P_T/√tr Σ tends to Σ^(−½), the ZCA whitening, as T grows; T = 5 whitens the large
directions and leaves the small ones smaller than 1, which the paper wants. The gradient flows
through the iteration. The covariance is biased. The same P_k are computed by the coupled iteration,
whose other half tends to the root of Σ: written as above, rounding in float32 grows beyond all
bounds from T = 10 on.

A group has 64 channels as in the authors' residual networks (their layer's own default is one group
of all channels, their VGG's 512); they halve that until it divides C, here it is the largest
divisor of C that is not above `group_size` (a C without one is normalized channel by channel). A
batch norm's running averages are loaded as a diagonal W.

Huang, Zhou, Zhu, Liu & Shao, "Iterative Normalization: Beyond Standardization Towards Efficient
Whitening", CVPR 2019, arXiv:1904.03441.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normbench.kernels.whitening import WhiteningNorm
from normbench.registry import Citation, Param, register


@register(
    "iter_norm",
    title="Iterative Normalization",
    family="whitening",
    equation=r"y = \gamma\,\frac{P_T}{\sqrt{\mathrm{tr}\,\Sigma}}\,(x-\mu)+\beta,\quad"
    r" P_k = \tfrac12\Big(3P_{k-1}-P_{k-1}^3\,\frac{\Sigma}{\mathrm{tr}\,\Sigma}\Big),\ P_0 = I",
    params={
        "group_size": Param("channels that are whitened together, at most", int, minimum=1),
        "iterations": Param("steps T of Newton's iteration", int, minimum=1),
        "eps": Param("added to the covariance's diagonal", minimum=0, exclusive_minimum=True),
        "affine": Param("learn gamma and beta", kind=bool),
        "momentum": Param("weight of the new batch in the running averages", minimum=0, maximum=1),
    },
    citation=Citation(
        "Iterative Normalization: Beyond Standardization Towards Efficient Whitening",
        ("Huang, Lei", "Zhou, Yi", "Zhu, Fan", "Liu, Li", "Shao, Ling"),
        2019,
        "Conference on Computer Vision and Pattern Recognition (CVPR)",
        "1904.03441",
    ),
    policy="As batch_norm: two values per channel in training, else it refuses. Where C is not "
    "divisible by `group_size`, groups of the largest divisor of C below it.",
)
class IterNorm(WhiteningNorm):
    """Whitens groups of channels by the batch's covariance, found by Newton's iteration."""

    def __init__(
        self,
        num_features: int,
        *,
        act: nn.Module | None = None,
        group_size: int = 64,
        iterations: int = 5,
        eps: float | None = None,
        affine: bool | None = None,
        momentum: float = 0.1,
    ) -> None:
        super().__init__(num_features, eps, affine, momentum, group_size)
        self.iterations = iterations

    def whitening_matrix(self, covariance: Tensor) -> Tensor:
        """P_T/√tr Σ, about Σ^(−½)."""
        identity = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
        sigma = covariance + self.eps * identity
        trace = (sigma * identity).sum((-2, -1), keepdim=True)
        scaled = sigma / trace  # eigenvalues up to 1, where the iteration converges
        root, p = scaled, identity.expand_as(scaled)
        for _ in range(self.iterations):
            step = 1.5 * identity - 0.5 * (p @ root)
            root, p = root @ step, step @ p
        return p * torch.rsqrt(trace)

    def extra_repr(self) -> str:
        """Also the steps of the iteration."""
        return f"{super().extra_repr()}, iterations={self.iterations}"
