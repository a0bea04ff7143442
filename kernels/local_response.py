"""Local response normalization with its backward written out.

The window over the channels is symmetric, so the backward needs the same sum as the forward.
Autograd's backward of a sum of shifted slices would fill a tensor of zeros for each of them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def window_sum(t: Tensor, radius: int) -> Tensor:
    """Sum over the channels at most `radius` away, those that there are."""
    channels = t.shape[1]
    total = t.clone()
    for distance in range(1, min(radius, channels - 1) + 1):
        kept = channels - distance
        total.narrow(1, distance, kept).add_(t.narrow(1, 0, kept))
        total.narrow(1, 0, kept).add_(t.narrow(1, distance, kept))
    return total


class _LocalResponse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, radius: int, alpha: float, beta: float, k: float) -> Tensor:
        base = window_sum(x.square(), radius).mul_(alpha).add_(k)
        power = base.log().mul_(-beta).exp_()  # pow: not vectorized on a CPU
        ctx.save_for_backward(x, base, power)
        ctx.constants = radius, alpha, beta
        return x * power

    @staticmethod
    @once_differentiable  # its own backward is not written: an error, not a wrong number
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, base, power = ctx.saved_tensors
        radius, alpha, beta = ctx.constants
        direct = grad * power
        others = window_sum((direct * x).div_(base), radius)
        return direct.addcmul_(x, others, value=-2 * alpha * beta), None, None, None, None


def local_response_norm(x: Tensor, radius: int, alpha: float, beta: float, k: float) -> Tensor:
    """x/(k + α·Σ x²)^β, the sum over the channels at most `radius` away."""
    y: Tensor = _LocalResponse.apply(x, radius, alpha, beta, k)
    return y
