"""x/√(E x² + eps) whose backward follows a running statistic of the gradient: mabn, power_norm.

With z = x/√(χ + eps) and g the gradient that reaches z, batch norm without a mean has

    dx = (g − z·E[g·z])/√(χ + eps)

Both methods put something of longer memory in the place of χ and of E[g·z]. The passes over the
images are torch's native batch norm in evaluation, with mean 0 and variance χ, and its backward.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def mean_square(x: Tensor) -> Tensor:
    """E[x²] of each channel over N,*."""
    mean, var = torch.batch_norm_update_stats(x, None, None, 0.0)
    return var + mean.square()


def scale(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, square: Tensor, eps: float
) -> Tensor:
    """gamma·x/√(square + eps) + beta."""
    return torch.batch_norm(
        x, weight, bias, torch.zeros_like(square), square,
        False, 0.0, eps, torch.backends.cudnn.enabled,
    )  # fmt: skip


def _gradients(
    grad: Tensor, x: Tensor, weight: Tensor, square: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """gamma·g/√(χ + eps); those of gamma and beta; E[gamma·g·z]."""
    zeros, inverse = torch.zeros_like(square), torch.rsqrt(square + eps)
    grad_x, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
        grad, x, weight, zeros, square, zeros, inverse, False, eps, (True, True, True)
    )
    return grad_x, grad_weight, grad_bias, weight * grad_weight * (x.shape[1] / x.numel())


class _MovingAverage(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        square: Tensor,
        r: Tensor,
        eps: float,
        recent: Tensor,
        slot: Tensor,
        alone: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, square, r, slot, alone)
        ctx.eps, ctx.recent = eps, recent
        return scale(x, weight * r, bias, square, eps)

    @staticmethod
    @once_differentiable  # its own backward is not written: an error, not a wrong number
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, square, r, slot, alone = ctx.saved_tensors
        grad_x, grad_scale, grad_bias, now = _gradients(grad, x, weight * r, square, ctx.eps)
        ctx.recent.index_copy_(0, slot, now[None].to(ctx.recent.dtype))
        average = torch.where(alone > 0, now, ctx.recent.mean(0).to(now.dtype))
        grad_x = _minus(grad_x, x, average / (square + ctx.eps))
        return grad_x, grad_scale * r, grad_bias, None, None, None, None, None, None


class _Power(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        square: Tensor,
        now: Tensor,
        eps: float,
        running: Tensor,
        momentum: float,
    ) -> Tensor:
        energy = now / (square + eps)
        ctx.save_for_backward(x, weight, square, energy)
        ctx.eps, ctx.running, ctx.momentum = eps, running, momentum
        return scale(x, weight, bias, square, eps)

    @staticmethod
    @once_differentiable  # its own backward is not written: an error, not a wrong number
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, square, energy = ctx.saved_tensors
        grad_x, grad_weight, grad_bias, now = _gradients(grad, x, weight, square, ctx.eps)
        before = ctx.running.to(now.dtype)
        grad_x = _minus(grad_x, x, before / (square + ctx.eps))
        ctx.running.add_((now - before * energy).to(ctx.running.dtype), alpha=ctx.momentum)
        return grad_x, grad_weight, grad_bias, None, None, None, None, None


def _minus(grad_x: Tensor, x: Tensor, share: Tensor) -> Tensor:
    """`grad_x` − share·x, channel by channel."""
    return torch.addcmul(grad_x, x, share.view(1, -1, *[1] * (x.dim() - 2)), value=-1)


def moving_average_scale(
    x: Tensor,
    affine: tuple[Tensor, Tensor],
    square: Tensor,
    r: Tensor,
    eps: float,
    recent: Tensor,
    slot: Tensor,
    alone: Tensor,
) -> Tensor:
    """gamma·r·x/√(square + eps) + beta; E[g·z] averaged over recent batches in the backward.

    Args:
        x: N,C,* input.
        affine: gamma and beta, C values each.
        square: χ, a constant in the backward.
        r: a constant factor of each channel.
        eps: added to χ.
        recent: E[g·z] of recent batches, one a row; the backward writes this batch's.
        slot: the row of this batch, of shape 1.
        alone: 1 where this batch's own E[g·z] is used instead of the average, else 0.
    """
    return cast(Tensor, _MovingAverage.apply(x, *affine, square, r, eps, recent, slot, alone))


def power_scale(
    x: Tensor,
    affine: tuple[Tensor, Tensor],
    square: Tensor,
    now: Tensor,
    eps: float,
    running: Tensor,
    momentum: float,
) -> Tensor:
    """gamma·x/√(square + eps) + beta; a running ν in the place of E[g·z] in the backward.

    Args:
        x: N,C,* input.
        affine: gamma and beta, C values each.
        square: ψ², a constant in the backward.
        now: E[x²] of this batch.
        eps: added to ψ².
        running: ν; the backward moves it to ν·(1 − momentum·E[z²]) + momentum·E[g·z].
        momentum: weight of this batch.
    """
    return cast(Tensor, _Power.apply(x, *affine, square, now, eps, running, momentum))
