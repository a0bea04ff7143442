"""Means and variances as tensors of their own, and normalization by statistics that mix them.

The native ops normalize by the statistics they compute; a method that first mixes those of the
sample, the batch and the running averages needs them apart. Gradients flow through everything.
"""

from __future__ import annotations

import torch
from torch import Tensor

from normbench.kernels.channels import HALF, as_float, keep_format
from normbench.kernels.mean_and_variance import mean_and_variance


def over_batch(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per channel, C values each; float32 for half inputs."""
    return mean_and_variance(as_float(x), (0, *range(2, x.dim())))


def over_space(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance per sample and channel, N,C values each; a single value has 0."""
    wide = as_float(x)
    if x.dim() == 2:
        return wide, torch.zeros_like(wide)
    return mean_and_variance(wide, range(2, x.dim()))


def normalize(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """gamma·(x − μ)/√(σ² + eps) + beta by C or N,C statistics, in one pass over x.

    Computed in float32 for half inputs; the result has the input's type and memory format.
    """
    scale = torch.rsqrt(as_float(var) + eps)
    if weight is not None:
        scale = scale * as_float(weight)
    shift = -as_float(mean) * scale
    if bias is not None:
        shift = shift + as_float(bias)
    ones = (1,) * (x.dim() - 2)
    scale, shift = (t.reshape(-1, x.shape[1], *ones) for t in (scale, shift))
    y = torch.addcmul(shift, as_float(x), scale)
    return keep_format(y.to(x.dtype) if x.dtype in HALF else y, x)
