"""Online normalization: samples one after the other, for all channels at once.

The statistics of sample t − 1 normalize sample t, and the backward subtracts what the gradients of
earlier samples left over. All of it is recurrences s_t = a_t·s_(t−1) + b_t over the samples of a
batch, on one number per sample and channel; the passes over the images are as in any norm.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def recurrence(factor: Tensor, term: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """s_t = factor_t·s_(t−1) + term_t from s_0 = start, in log₂ N steps instead of N.

    Args:
        factor: N,C.
        term: N,C.
        start: C.

    Returns:
        The values before each sample, N,C, and the one after the last, C.
    """
    value = torch.cat((term[:1] + factor[:1] * start, term[1:]))
    reach = 1  # how many samples each value looks back on
    while reach < len(value):
        value = torch.cat((value[:reach], value[reach:] + factor[reach:] * value[:-reach]))
        factor = torch.cat((factor[:reach], factor[reach:] * factor[:-reach]))
        reach *= 2
    return torch.cat((start[None], value[:-1])), value[-1]


class _Controlled(torch.autograd.Function):
    """(x − m)/s = z with m and s of each sample and channel, and the control of its gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        moments: tuple[Tensor, Tensor],
        before: tuple[Tensor, Tensor],
        control: tuple[Tensor, Tensor],
        momentum: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        (mean, var), (running_mean, inverse) = moments, before
        z = (x - running_mean[:, :, None]).mul_(inverse[:, :, None])
        z_mean, z_var = (mean - running_mean) * inverse, var * inverse.square()
        ctx.save_for_backward(z, z_mean, z_var, inverse)
        ctx.control, ctx.momentum = control, momentum
        return z, z_mean, z_var

    @staticmethod
    @once_differentiable  # its own backward is not written: an error, not a wrong number
    def backward(ctx: Any, grad: Tensor, grad_mean: Tensor, grad_var: Tensor) -> Any:
        z, z_mean, z_var, inverse = ctx.saved_tensors
        u, v = ctx.control
        size = z.shape[2]
        # The whole gradient g of z is grad + grad_mean/size + 2·(z − z_mean)·grad_var/size.
        along_one = grad.mean(2) + grad_mean / size
        along_z = (grad * z).mean(2) + (grad_mean * z_mean + 2 * grad_var * z_var) / size
        shrink = 1 - ctx.momentum * (z_var + z_mean.square())
        v_before, v_after = recurrence(shrink, along_z, v.to(z.dtype))
        left = (along_one - ctx.momentum * v_before * z_mean) * inverse
        u_before, u_after = recurrence(torch.full_like(left, 1 - ctx.momentum), left, u.to(z.dtype))
        u.copy_(u_after)
        v.copy_(v_after)
        of_z = (2 * grad_var / size - ctx.momentum * v_before) * inverse
        of_one = (grad_mean - 2 * grad_var * z_mean) / size * inverse - ctx.momentum * u_before
        grad_x = torch.addcmul(of_one[:, :, None], z, of_z[:, :, None])
        return grad_x.addcmul_(grad, inverse[:, :, None]), None, None, None, None


def controlled_norm(
    x: Tensor,
    moments: tuple[Tensor, Tensor],
    before: tuple[Tensor, Tensor],
    control: tuple[Tensor, Tensor],
    momentum: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """(x − m)/s = z, whose backward is freed of its part along 1 and along z over time.

    Args:
        x: N,C,L input.
        moments: mean and variance of x over L, N,C each; the gradient by them is in that by x.
        before: m and 1/s that each sample is normalized by, constants in the backward.
        control: u and v, C each; the backward moves them.
        momentum: 1 − α_b.

    Returns:
        z, and its mean and variance over L.
    """
    return cast(
        tuple[Tensor, Tensor, Tensor], _Controlled.apply(x, moments, before, control, momentum)
    )
