r"""Extended Batch Normalization.

    y = gamma·(x − μ_c)/√(σ² + eps) + beta

μ_c over N,H,W per channel as in batch norm, but a single σ² (biased) over N,C,H,W: more values for
small batches. σ is the standard deviation along these dims, hence about their common mean and not
about each channel's μ_c: channels whose means differ are scaled down. In evaluation the running
averages `running_mean` (C values) and `running_layer_var` (one, unbiased as batch norm's). A
batch norm's state is taken over: the variance of all channels together is the mean of its
variances plus the variance of its means.

Luo, Zhan, Wang & Gao, "Extended Batch Normalization", arXiv:2003.05569.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

from normbench.kernels.channels import ChannelNorm, as_float
from normbench.kernels.moments import moments, move, pooled, standardize, unbiased
from normbench.registry import Citation, Param, register


@register(
    "extended_batch_norm",
    title="Extended Batch Normalization",
    family="mixture",
    equation=r"y = \gamma\,\frac{x-\mu_{NHW}}{\sqrt{\sigma^2_{NCHW}+\epsilon}}+\beta",
    params={
        "eps": Param("added to the variance, inside the root", minimum=0, exclusive_minimum=True),
        "affine": Param("learn gamma and beta", kind=bool),
        "momentum": Param("weight of the new batch in the running averages", minimum=0, maximum=1),
    },
    citation=Citation(
        "Extended Batch Normalization",
        ("Luo, Chunjie", "Zhan, Jianfeng", "Wang, Lei", "Gao, Wanling"),
        2020,
        "arXiv preprint",
        "2003.05569",
    ),
    policy="As batch_norm: two values per channel in training, else it refuses, as with one value "
    "nothing but beta is left.",
)
class ExtendedBatchNorm(ChannelNorm):
    """Centres each channel by the batch's mean and divides all by one standard deviation."""

    running_mean: Tensor
    running_layer_var: Tensor
    num_batches_tracked: Tensor

    def __init__(
        self,
        num_features: int,
        *,
        act: nn.Module | None = None,
        eps: float | None = None,
        affine: bool | None = None,
        momentum: float = 0.1,
    ) -> None:
        super().__init__(num_features, eps, affine)
        self.momentum = momentum
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_layer_var", torch.ones(1))
        self.register_buffer("num_batches_tracked", torch.tensor(0, dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        """N,C,* to the same shape. Raises ValueError for one value per channel in training."""
        self.check_batch(x) if self.training else self.check(x)
        wide = as_float(x)
        if self.training:
            mean, channel_var = moments(wide)
            var = layer_var(mean, channel_var)
            self.num_batches_tracked.add_(1)
            move(self.running_mean, mean, self.momentum)
            move(self.running_layer_var, unbiased(var, x.numel()), self.momentum)
        else:
            mean, var = as_float(self.running_mean), as_float(self.running_layer_var)
        return standardize(wide, mean, var, self.weight, self.bias, self.eps).to(x.dtype)

    def _load_from_state_dict(
        self, state_dict: MutableMapping[str, Any], prefix: str, *args: Any
    ) -> None:
        """Takes BatchNorm's state too, its variances pooled into one."""
        var = state_dict.pop(f"{prefix}running_var", None)
        if var is not None and f"{prefix}running_layer_var" not in state_dict:
            mean = state_dict[f"{prefix}running_mean"]
            state_dict[f"{prefix}running_layer_var"] = layer_var(mean, var)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """Also the momentum."""
        return f"{super().extra_repr()}, momentum={self.momentum:g}"


def layer_var(mean: Tensor, var: Tensor) -> Tensor:
    """Variance of all channels together, one value, from each channel's moments."""
    return pooled(mean, var, 0)[1]
