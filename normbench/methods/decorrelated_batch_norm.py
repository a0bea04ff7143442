r"""Decorrelated Batch Normalization: exact ZCA whitening.

    y = gamma·Σ^(−½)(x − μ) + beta,  Σ = cov(x) + eps·1,  Σ^(−½) = U·diag(λ^(−½))·Uᵀ

for each group of channels, over N,H,W of the batch in training; in evaluation the running averages
of μ and of Σ^(−½). The covariance is biased. The backward is exact and has no 1/(λ_i − λ_j): in the
eigenbasis the derivative of Σ^(−½) is multiplication by −1/(√λ_i·√λ_j·(√λ_i + √λ_j)). Equal
eigenvalues leave that finite; the paper's formula, through the eigenvectors, they do not.

Groups have 16 channels, the paper's choice for convolutional networks, or the largest divisor of C
below it (in the authors' code the last group is smaller). Their Torch code takes eps 1e-7, their
PyTorch code 1e-5 as here; the latter has one Σ for all groups together, which is not built. A batch
norm's running averages are loaded as a diagonal Σ^(−½).

Huang, Yang, Lang & Deng, "Decorrelated Batch Normalization", CVPR 2018, arXiv:1804.08450.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from normbench.kernels.whitening import WhiteningNorm
from normbench.registry import Citation, Param, register


class _InverseRoot(torch.autograd.Function):
    """(Σ + eps·1)^(−½) of symmetric matrices."""

    @staticmethod
    def forward(ctx: Any, covariance: Tensor, eps: float) -> Tensor:
        # eigh stops with an error at a value that is not finite; a training that diverged shall
        # show its NaN instead, and gets it back below.
        nothing = covariance - covariance
        values, vectors = torch.linalg.eigh(torch.nan_to_num(covariance, 0.0, 0.0, 0.0))
        # A covariance has no negative eigenvalues; rounding can, by more than eps.
        root = torch.sqrt(values.clamp_min(0) + eps)
        ctx.save_for_backward(root, vectors)
        inverse_root: Tensor = (vectors / root[:, None, :]) @ vectors.mT + nothing
        return inverse_root

    @staticmethod
    @once_differentiable  # its own backward is not written: an error, not a wrong number
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        root, vectors = ctx.saved_tensors
        rows, columns = root[:, :, None], root[:, None, :]
        inner = -(vectors.mT @ grad @ vectors) / (rows * columns * (rows + columns))
        return vectors @ inner @ vectors.mT, None


@register(
    "decorrelated_batch_norm",
    title="Decorrelated Batch Normalization",
    family="whitening",
    equation=r"y = \gamma\,\Sigma^{-\frac12}(x-\mu)+\beta,\quad"
    r" \Sigma = \mathrm{Cov}_{NHW}(x)+\epsilon I",
    params={
        "group_size": Param("channels that are whitened together, at most", int, minimum=1),
        "eps": Param("added to the covariance's diagonal", minimum=0, exclusive_minimum=True),
        "affine": Param("learn gamma and beta", kind=bool),
        "momentum": Param("weight of the new batch in the running averages", minimum=0, maximum=1),
    },
    citation=Citation(
        "Decorrelated Batch Normalization",
        ("Huang, Lei", "Yang, Dawei", "Lang, Bo", "Deng, Jia"),
        2018,
        "Conference on Computer Vision and Pattern Recognition (CVPR)",
        "1804.08450",
    ),
    policy="As batch_norm: two values per channel in training, else it refuses. Where C is not "
    "divisible by `group_size`, groups of the largest divisor of C below it. With fewer values "
    "than channels in a group, 1/√eps stands in the missing directions of the running matrix.",
)
class DecorrelatedBatchNorm(WhiteningNorm):
    """Whitens groups of channels by the inverse root of the batch's covariance."""

    def __init__(
        self,
        num_features: int,
        *,
        act: nn.Module | None = None,
        group_size: int = 16,
        eps: float | None = None,
        affine: bool | None = None,
        momentum: float = 0.1,
    ) -> None:
        super().__init__(num_features, eps, affine, momentum, group_size)

    def whitening_matrix(self, covariance: Tensor) -> Tensor:
        """(Σ + eps·1)^(−½) by eigendecomposition."""
        return _InverseRoot.apply(covariance, self.eps)  # type: ignore[no-any-return]
