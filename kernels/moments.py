"""Layers that mix or pool mean and variance before they use them: both as differentiable values.

The native batch norm takes its statistics as they are. Here they come out, C values of mean and
variance with a gradient, are combined as the method wants (C values cost nothing), and go back in
as one native affine. A statistic per sample is the same on the rows of `sample_rows`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from normbench.kernels.channels import as_float, keep_format
from normbench.kernels.mean_and_variance import mean_and_variance


class _Moments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        # The native op is slower where channels are rows on a CPU, and cannot be exported.
        if x.is_contiguous() and (x.device.type == "cpu" or torch.compiler.is_exporting()):
            mean, var = mean_and_variance(x, (0, *range(2, x.dim())))
        else:
            mean, var = torch.batch_norm_update_stats(x, None, None, 0.0)
        ctx.save_for_backward(x, mean)
        return mean, var

    @staticmethod
    def backward(ctx: Any, d_mean: Tensor, d_var: Tensor) -> Tensor:
        x, mean = ctx.saved_tensors
        values, shape = x.numel() // x.shape[1], (1, -1, *[1] * (x.dim() - 2))
        slope = d_var * (2 / values)  # of d_mean/values + 2·d_var·(x − mean)/values
        shift = torch.addcmul(d_mean / values, slope, mean, value=-1)
        return torch.addcmul(shift.view(shape), x, slope.view(shape))


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over all dims but the channels, C values each, with gradient."""
    mean, var = _Moments.apply(x)
    return mean, var


def sample_rows(x: Tensor) -> Tensor:
    """N,C,* input as 1,N·C,HW: every channel of every sample is a channel of its own."""
    return x.reshape(1, x.shape[0] * x.shape[1], -1)


def from_rows(rows: Tensor, x: Tensor) -> Tensor:
    """The rows of `sample_rows(x)` in the shape, type and memory format of `x`."""
    return keep_format(rows.view(x.shape), x).to(x.dtype)


def scale_shift(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """scale·x + shift, C values each: the native batch norm in evaluation with mean 0, variance 1.

    Their gradients are the sums that its backward gives along with that of x.
    """
    scale, shift = scale.contiguous(), shift.contiguous()
    zeros, ones = torch.zeros_like(scale), torch.ones_like(scale)
    return torch.batch_norm(x, scale, shift, zeros, ones, False, 0.0, 0.0, False)


def standardize(
    x: Tensor, mean: Tensor, var: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """gamma·(x − mean)/√(var + eps) + beta, with gradient.

    Mean and variance have C values, or N,C where `x` is the rows of samples; one variance may
    stand for all. gamma and beta have C values, of x's type or wider.
    """
    scale = torch.rsqrt(var + eps).expand_as(mean)
    scale = scale if weight is None else scale * as_float(weight)
    shift = -mean * scale if bias is None else torch.addcmul(as_float(bias), mean, scale, value=-1)
    return scale_shift(x, scale.flatten(), shift.flatten())


def pooled(mean: Tensor, var: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Moments of the whole from those of its equally large parts along `dim`, which stays as 1."""
    center = mean.mean(dim, keepdim=True)
    return center, (var + (mean - center).square()).mean(dim, keepdim=True)


@torch.no_grad()
def move(running: Tensor, now: Tensor, momentum: float) -> None:
    """Moves a running average by the share `momentum` towards a value of this batch."""
    running.lerp_(now.to(running.dtype), momentum)


def unbiased(var: Tensor, values: int) -> Tensor:
    """A biased variance over so many values, without the bias; as it is where there is one."""
    return var * (values / (values - 1)) if values > 1 else var
