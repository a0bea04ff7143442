"""Batch norm with leaky ReLU that keeps its output for the backward, not its input.

Leaky ReLU and the affine map with a scale above 0 can be inverted, so x̂ comes back from the output,
which the next layer keeps anyway. The input, usually a convolution's output that nobody else keeps,
is free after the forward: that is the memory saved.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from normbench.kernels.channels import as_float

aten: Any = torch.ops.aten


class _ActivatedBatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, bias: Tensor, slope: float, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = as_float(x)
        mean, var = torch.batch_norm_update_stats(wide, None, None, 0.0)
        y = torch.batch_norm(wide, scale, bias, mean, var, False, 0.0, eps, False)
        y = F.leaky_relu(y, slope, inplace=True).to(x.dtype)
        ctx.save_for_backward(y, scale, bias, torch.rsqrt(var + eps))
        ctx.slope, ctx.eps = slope, eps
        ctx.mark_non_differentiable(mean, var)
        return y, mean, var

    @staticmethod
    @once_differentiable  # its own backward is not written: an error, not a wrong number
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        y, scale, bias, inverse_std = ctx.saved_tensors
        out = as_float(y)
        z = F.leaky_relu(out, 1 / ctx.slope)
        grad_z = aten.leaky_relu_backward(as_float(grad), out, ctx.slope, True)
        # Batch norm's backward with z in the input's place: x̂ = (z − beta)/scale, so its mean is
        # beta and its standard deviation the scale; the weight makes up for the true one.
        grad_x, grad_scale, grad_bias = aten.native_batch_norm_backward(
            grad_z, z, scale.square() * inverse_std, None, None, bias,
            scale.reciprocal(), True, ctx.eps, (True, True, True),
        )  # fmt: skip
        return grad_x.to(y.dtype), grad_scale, grad_bias, None, None


def activated_batch_norm(
    x: Tensor, scale: Tensor, bias: Tensor, slope: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """leaky_relu(scale·(x − μ)/√(σ² + eps) + beta, slope), the batch's μ and σ².

    Args:
        x: N,C,* input.
        scale: C values above 0, float32 for half inputs.
        bias: beta, likewise.
        slope: of the negative side, above 0.
        eps: added to the variance.

    Returns:
        The output, which has to stay as it is until the backward, μ and σ² (biased).
    """
    y, mean, var = _ActivatedBatchNorm.apply(x, scale, bias, slope, eps)
    return y, mean, var
