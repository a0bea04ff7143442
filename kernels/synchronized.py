"""Batch norm in training over the values of all processes, on torch's native ops.

Each process takes the statistics of its own values and all gather them, weighed by the number of
values, so that batches may differ in size. The backward adds up two sums per channel over the
processes and is batch norm's with them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from normbench.kernels.channels import as_float


def process_count() -> int:
    """Processes of the default group; 1 without one."""
    if not (dist.is_available() and dist.is_initialized()):
        return 1
    return int(dist.get_world_size())


def _pooled(mean: Tensor, var: Tensor, values: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, biased variance and number of values over all processes, from those of each."""
    own = torch.cat([mean, var, mean.new_full((1,), values)])
    parts = [torch.empty_like(own) for _ in range(process_count())]
    dist.all_gather(parts, own)
    means, variances, counts = torch.split(torch.stack(parts), [len(mean), len(var), 1], dim=1)
    total = counts.sum()
    share = counts / total
    pooled = (share * means).sum(0)
    return pooled, (share * (variances + (means - pooled).square())).sum(0), total


class _SyncBatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        wide = as_float(x)
        mean, var = torch.batch_norm_update_stats(wide, None, None, 0.0)
        mean, var, total = _pooled(mean, var, x.numel() // x.shape[1])
        ctx.save_for_backward(x, weight, mean, var, total)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, var, total)
        y = torch.batch_norm(wide, weight, bias, mean, var, False, 0.0, eps, False)
        return y.to(x.dtype), mean, var, total

    @staticmethod
    @once_differentiable  # its own backward is not written: an error, not a wrong number
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, weight, mean, var, total = ctx.saved_tensors
        wide, inverse_std = as_float(x), torch.rsqrt(var + ctx.eps)
        # As in evaluation: gamma·grad/σ, Σ grad·x̂ and Σ grad of this process.
        grad_x, grad_weight, grad_bias = torch.ops.aten.native_batch_norm_backward(
            as_float(grad), wide, weight, mean, var, mean, inverse_std, False, ctx.eps,
            (True, True, True),
        )  # fmt: skip
        sums = torch.stack([grad_weight, grad_bias])
        dist.all_reduce(sums)
        # What the statistics add: −gamma/σ·(x̂·Σ grad·x̂ + Σ grad)/n, an affine map of x again.
        scale = inverse_std / -total if weight is None else weight * inverse_std / -total
        slope, shift = scale * sums
        grad_x += torch.batch_norm(wide, slope, shift, mean, var, False, 0.0, ctx.eps, False)
        if weight is None:
            return grad_x.to(x.dtype), None, None, None
        return grad_x.to(x.dtype), grad_weight, grad_bias, None


def sync_batch_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """gamma·(x − μ)/√(σ² + eps) + beta with μ and σ² of the values of all processes.

    The gradients of weight and bias are those of this process's part of the loss; added up over
    the processes they are those of the pooled batch.

    Args:
        x: N,C,* input with a value on every process; N and the maps may differ between processes.
        weight: gamma, C values of x's type, float32 for half inputs; or None, as beta.
        bias: beta, C values.
        eps: added to the variance.

    Returns:
        y, and μ, σ² (biased) and the number of values per channel of all processes.
    """
    y, mean, var, total = _SyncBatchNorm.apply(x, weight, bias, eps)
    return y, mean, var, total
