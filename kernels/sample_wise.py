"""Statistics of single samples, as tensors that autograd follows, and how parameters meet them.

For the methods whose formula no native norm op computes. All statistics are float32 for half
inputs, if the input is widened with `as_float` first.
"""

from __future__ import annotations

import torch
from torch import Tensor

from normbench.kernels.channels import as_float
from normbench.kernels.grouped import check_groups
from normbench.kernels.mean_and_variance import mean_and_variance


def per_channel(values: Tensor, x: Tensor) -> Tensor:
    """C values, or one for all channels, shaped to broadcast over N,C,* `x`."""
    return as_float(values).view(1, -1, *[1] * (x.dim() - 2))


def space_mean_square(x: Tensor) -> Tensor:
    """Mean of x² over the positions, N,C,1,*; N,C input has one position."""
    if x.dim() == 2:
        return x.square()
    return x.square().mean(tuple(range(2, x.dim())), keepdim=True)


def space_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over the positions, N,C,1,*; the variance of one value is 0."""
    if x.dim() == 2:
        return x, torch.zeros_like(x)
    return mean_and_variance(x, range(2, x.dim()), keepdim=True)


def pooled_variance(mean: Tensor, var: Tensor, dim: int) -> Tensor:
    """Biased variance of equally large sets together, from their means and biased variances."""
    return var.mean(dim, keepdim=True) + mean.var(dim, correction=0, keepdim=True)


def group_variance(x: Tensor, groups: int) -> Tensor:
    """Biased variance over positions and the channels of a group, N,C,1,*.

    Raises:
        ValueError: if a group pools a single value.
    """
    check_groups(x, groups)
    mean, var = space_moments(x)
    by_group = (x.shape[0], groups, -1)
    pooled = pooled_variance(mean.reshape(by_group), var.reshape(by_group), 2)
    return pooled.expand(*pooled.shape[:2], x.shape[1] // groups).reshape(mean.shape)
