"""Batch Renormalization at about the cost of batch norm, on torch's native ops.

Written out, the layer costs seven elementwise passes. Here the forward is the native statistics
and the native affine (batch norm in evaluation, by the batch's own statistics, with gamma·r and
gamma·d + beta), and the backward is batch norm's with gamma·r in gamma's place.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from normbench.kernels.channels import HALF
from normbench.kernels.kept import kept

Limit = Tensor | float


def _clip(values: Tensor, low: Limit, high: Limit) -> Tensor:
    return torch.clamp(values, cast(float, low), cast(float, high))


class _BatchRenorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor,
        running_std: Tensor,
        rmax: Limit,
        dmax: Limit,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide = x.float() if x.dtype in HALF else x
        mean, var = torch.batch_norm_update_stats(wide, None, None, 0.0)
        inverse_std = torch.rsqrt(var + eps)
        std = inverse_std.reciprocal()
        r = kept(_clip(std / running_std, 1 / rmax, rmax))
        d = kept(_clip((mean - running_mean) / running_std, -dmax, dmax))
        scale, shift = weight * r, torch.addcmul(bias, weight, d)
        ctx.save_for_backward(x, r, d, scale, mean, inverse_std)
        ctx.eps = eps
        y = torch.batch_norm(wide, scale, shift, mean, var, False, 0.0, eps, False)
        ctx.mark_non_differentiable(mean, std, r)
        return y.to(x.dtype) if x.dtype in HALF else y, mean, std, r

    @staticmethod
    @once_differentiable  # its own backward is not written: an error, not a wrong number
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, r, d, scale, mean, inverse_std = ctx.saved_tensors
        if x.dtype in HALF:
            x, grad = x.float(), grad.float()
        grad_x, grad_scale, grad_shift = torch.ops.aten.native_batch_norm_backward(
            grad, x, scale, None, None, mean, inverse_std, True, ctx.eps, (True, True, True)
        )
        grad_weight = torch.addcmul(grad_scale * r, grad_shift, d)
        return grad_x, grad_weight, grad_shift, None, None, None, None, None


def batch_renorm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_std: Tensor,
    rmax: Limit,
    dmax: Limit,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""Y = gamma·((x − μ)/σ·r + d) + beta, with r and d as constants in the backward.

    r = clip(σ/σ_run, 1/rmax, rmax), d = clip((μ − μ_run)/σ_run, −dmax, dmax), from the running
    values as they are given; σ = √(biased variance + eps). Nothing is updated here.

    Args:
        x: N,C,* input.
        weight: gamma, C values.
        bias: beta, C values.
        running_mean: μ_run, C values.
        running_std: σ_run, C values.
        rmax: a number, or a tensor of none dims where reading it would make the host wait.
        dmax: as rmax.
        eps: added to the variance.

    Returns:
        y, μ, σ and r.
    """
    y, mean, std, r = _BatchRenorm.apply(
        x, weight, bias, running_mean, running_std, rmax, dmax, eps
    )
    return y, mean, std, r
