"""Layers that whiten groups of channels by the batch's covariance: iter_norm, decorrelated BN.

They differ in how the whitening matrix Σ^(−½) is found. Here is what they share: centring, the
covariance and its backward, the running averages of mean and whitening matrix.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from normbench.kernels.channels import ChannelNorm, as_float, keep_format
from normbench.kernels.grouped import largest_group_count


class _CentredCovariance(torch.autograd.Function):
    """x − μ and Σ. Autograd would multiply by the centred values twice in the backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean = x.mean((0, 3), keepdim=True)
        centred = x - mean
        count = x.shape[0] * x.shape[3]
        covariance = (centred @ centred.mT).sum(0) / count
        ctx.save_for_backward(centred)
        ctx.mark_non_differentiable(mean)
        return centred, covariance, mean

    @staticmethod
    @once_differentiable  # its own backward is not written: an error, not a wrong number
    def backward(ctx: Any, grad: Tensor, grad_covariance: Tensor, _: Any) -> Tensor:
        (centred,) = ctx.saved_tensors
        count = centred.shape[0] * centred.shape[3]
        both = (grad_covariance + grad_covariance.mT) / count  # Σ is quadratic in x − μ
        # The gradient through Σ has mean 0 as it is, the other must lose its own.
        through_covariance: Tensor = both @ centred
        return through_covariance.add_(grad).sub_(grad.mean((0, 3), keepdim=True))


class WhiteningNorm(ChannelNorm):
    """y = gamma·Σ^(−½)(x − μ) + beta for each group of channels; running averages in evaluation.

    A batch norm's running_var is loaded as a diagonal whitening matrix.
    """

    running_mean: Tensor
    running_whitening: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float | None,
        affine: bool | None,
        momentum: float,
        group_size: int,
    ) -> None:
        super().__init__(num_features, eps, affine)
        self.momentum = momentum
        size = largest_group_count(num_features, group_size)  # the largest divisor, here as a size
        self.groups = num_features // size
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_whitening", torch.eye(size).repeat(self.groups, 1, 1))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    def whitening_matrix(self, covariance: Tensor) -> Tensor:
        """Σ^(−½), with eps on the diagonal of Σ, for covariances of shape G,D,D."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """N,C,* to the same shape. Raises ValueError for one value per channel in training."""
        self.check(x)
        parts = as_float(x).reshape(x.shape[0], self.groups, self.num_features // self.groups, -1)
        with torch.autocast(x.device.type, enabled=False):  # a whitening in half is none
            if self.training:
                self.check_batch(x)
                centred, covariance, mean = _CentredCovariance.apply(parts)
                matrix = self.whitening_matrix(covariance)
                self._update(mean, matrix)
            else:
                centred = parts - as_float(self.running_mean).view(self.groups, -1, 1)
                matrix = as_float(self.running_whitening)
            if self.weight is not None:
                matrix = as_float(self.weight).view(self.groups, -1, 1) * matrix
            y = matrix @ centred
            if self.bias is not None:
                y = y + as_float(self.bias).view(self.groups, -1, 1)
        return keep_format(y.view(x.shape), x).to(x.dtype)

    @torch.no_grad()
    def _update(self, mean: Tensor, matrix: Tensor) -> None:
        self.num_batches_tracked.add_(1)
        for running, now in ((self.running_mean, mean), (self.running_whitening, matrix)):
            running.lerp_(now.detach().view_as(running).to(running.dtype), self.momentum)

    def _load_from_state_dict(
        self, state_dict: MutableMapping[str, Any], prefix: str, *args: Any
    ) -> None:
        var = state_dict.pop(f"{prefix}running_var", None)
        if var is not None and f"{prefix}running_whitening" not in state_dict:
            scale = torch.rsqrt(var + self.eps).view(self.groups, -1)
            state_dict[f"{prefix}running_whitening"] = torch.diag_embed(scale)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """Also the number of groups in use."""
        return f"{super().extra_repr()}, momentum={self.momentum:g}, groups={self.groups}"
