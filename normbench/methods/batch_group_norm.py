r"""Batch Group Normalization.

    y = gamma·(x − μ_g)/√(σ²_g + eps) + beta

C,H,W are flattened and cut into G groups; μ_g and σ²_g (biased) over the batch and a group, gamma
and beta per channel. G = 1 pools everything, G = C is batch norm. In evaluation the running
averages of the G means and variances (unbiased, as batch norm's; the paper does not say).

The paper tunes G to the batch size, few groups for small batches and many for large ones; the
default here is group norm's 32. With more groups than channels the paper's flattening cuts maps
into pieces; here a group is of whole channels, so that G, and with it the state, does not depend
on the size of the maps. Where C is not divisible by `groups`, the largest divisor of C below it.

Zhou, Sun, Ye, Lan, Luo, Lai, Esperanca, Yang & Li, "Batch Group Normalization", arXiv:2012.02782.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normbench.kernels.channels import ChannelNorm, as_float
from normbench.kernels.grouped import largest_group_count
from normbench.kernels.moments import moments, move, pooled, standardize, unbiased
from normbench.registry import Citation, Param, register


@register(
    "batch_group_norm",
    title="Batch Group Normalization",
    family="mixture",
    equation=r"y = \gamma\,\frac{x-\mu_{Ng}}{\sqrt{\sigma^2_{Ng}+\epsilon}}+\beta,\quad"
    r" g\text{ one of }G\text{ groups of }(C,H,W)",
    params={
        "groups": Param("number of groups G; at most this many where C % G ≠ 0", int, minimum=1),
        "eps": Param("added to the variance, inside the root", minimum=0, exclusive_minimum=True),
        "affine": Param("learn gamma and beta", kind=bool),
        "momentum": Param("weight of the new batch in the running averages", minimum=0, maximum=1),
    },
    citation=Citation(
        "Batch Group Normalization",
        (
            "Zhou, Xiao-Yun", "Sun, Jiacheng", "Ye, Nanyang", "Lan, Xu", "Luo, Qijun",
            "Lai, Bo-Lin", "Esperanca, Pedro", "Yang, Guang-Zhong", "Li, Zhenguo",
        ),
        2020,
        "arXiv preprint",
        "2012.02782",
    ),
    policy="Where C is not divisible by `groups`, the largest divisor of C below it. 1×1 maps, N,C "
    "input and a batch of one work while a group pools two values in training, else it refuses.",
)  # fmt: skip
class BatchGroupNorm(ChannelNorm):
    """Normalizes groups of channels by their statistics over the batch; running in evaluation."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        num_features: int,
        *,
        act: nn.Module | None = None,
        groups: int = 32,
        eps: float | None = None,
        affine: bool | None = None,
        momentum: float = 0.1,
    ) -> None:
        super().__init__(num_features, eps, affine)
        self.groups, self.momentum = largest_group_count(num_features, groups), momentum
        self.register_buffer("running_mean", torch.zeros(self.groups))
        self.register_buffer("running_var", torch.ones(self.groups))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        """N,C,* to the same shape. Raises ValueError for one value per group in training."""
        self.check(x)
        wide = as_float(x)
        if self.training:
            mean, var = self._batch_statistics(wide)
        else:
            mean, var = as_float(self.running_mean), as_float(self.running_var)
        size = self.num_features // self.groups
        mean, var = mean.repeat_interleave(size), var.repeat_interleave(size)
        return standardize(wide, mean, var, self.weight, self.bias, self.eps).to(x.dtype)

    def _batch_statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and biased variance of every group, after they moved the running averages."""
        values = x.numel() // self.groups
        if values < 2:
            raise ValueError(
                f"BatchGroupNorm in training needs at least 2 values per channel group to have a "
                f"variance, got {values} (values per channel: {x.numel() // x.shape[1]}): "
                f"input of shape {tuple(x.shape)}, {self.groups} groups"
            )
        means, variances = (m.view(self.groups, -1) for m in moments(x))
        mean, var = (m.flatten() for m in pooled(means, variances, 1))
        self.num_batches_tracked.add_(1)
        move(self.running_mean, mean, self.momentum)
        move(self.running_var, unbiased(var, values), self.momentum)
        return mean, var

    def extra_repr(self) -> str:
        """Also the number of groups in use."""
        return f"{super().extra_repr()}, groups={self.groups}, momentum={self.momentum:g}"
