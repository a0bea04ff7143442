r"""Batch-Channel Normalization, with Weight Standardization.

    ẋ = gamma·(x − μ)/√(σ² + eps) + beta           per channel, over the batch
    y = gamma_g·(ẋ − μ_g)/√(σ²_g + eps) + beta_g   per sample and group of channels

μ and σ² (biased) are the batch's in training, as in batch norm; with `estimate`, which the paper
uses for micro-batches, they are the running averages after this batch's update, without gradient.
As in the authors' code an estimate's variance is the deviation from the running mean as it was
before the update, (1/NHW)·Σ(x − running_mean)². The second affine is per group, not per channel
(`group_weight`, `group_bias`). Weights are standardized as in `weight_standardization`, unless
`standardize=False`; so does the authors' code for segmentation, while theirs for ImageNet has the
1e-5 under the root.

A group norm undoes the scale of what it is given, so a zero gamma loaded from a zero-initialised
batch norm is moved to the scale that counts, gamma_g.

Qiao, Wang, Liu, Shen & Yuille, "Rethinking Normalization and Elimination Singularity in Neural
Networks", 2019, arXiv:1911.09738.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

from normbench.kernels.channels import HALF, as_float
from normbench.kernels.grouped import check_groups, group_norm, largest_group_count
from normbench.kernels.running import RunningNorm
from normbench.methods import weight_standardization
from normbench.registry import Citation, Param, register


def standardize(conv: nn.Module, standardize: bool, **_: object) -> nn.Module | None:
    """Puts the parametrization of weight_standardization on a convolution, if asked to."""
    if standardize:
        weight_standardization.standardize(conv)
    return None


@register(
    "batch_channel_norm",
    title="Batch-Channel Normalization",
    family="batch",
    equation=r"\dot x = \gamma\,\frac{x-\mu}{\sqrt{\sigma^2+\epsilon}}+\beta,\quad"
    r" y = \gamma_{g}\,\frac{\dot x-\mu_{g}}{\sqrt{\sigma^2_{g}+\epsilon}}+\beta_{g}",
    params={
        "groups": Param("number of groups G; at most this many where C % G ≠ 0", int, minimum=1),
        "estimate": Param("running averages in training too, for micro-batches", kind=bool),
        "standardize": Param("standardize the weights of convolutions", kind=bool),
        "eps": Param("added to both variances", minimum=0, exclusive_minimum=True),
        "affine": Param("learn gamma and beta, of channels and of groups", kind=bool),
        "momentum": Param("weight of the new batch in the running averages", minimum=0, maximum=1),
    },
    citation=Citation(
        "Rethinking Normalization and Elimination Singularity in Neural Networks",
        ("Qiao, Siyuan", "Wang, Huiyu", "Liu, Chenxi", "Shen, Wei", "Yuille, Alan"),
        2019,
        "arXiv preprint",
        "1911.09738",
    ),
    weight=standardize,
    policy="Groups as group_norm: the largest divisor of C not above `groups`, and a group that "
    "pools a single value is refused. Without `estimate` a channel needs two values in training, "
    "as batch_norm; with it one is enough. A zero gamma that is loaded becomes a zero gamma_g.",
)
class BatchChannelNorm(RunningNorm):
    """Batch norm followed by group norm with an affine per group; standardizes weights too."""

    group_weight: nn.Parameter | None
    group_bias: nn.Parameter | None

    def __init__(
        self,
        num_features: int,
        *,
        act: nn.Module | None = None,
        groups: int = 32,
        estimate: bool = False,
        standardize: bool = True,
        eps: float | None = None,
        affine: bool | None = None,
        momentum: float = 0.1,
    ) -> None:
        super().__init__(num_features, eps, affine, momentum)
        self.groups, self.estimate = largest_group_count(num_features, groups), estimate
        for name, value in {"group_weight": 1.0, "group_bias": 0.0}.items():
            values = nn.Parameter(torch.full((self.groups,), value))
            self.register_parameter(name, values if self.weight is not None else None)

    def forward(self, x: Tensor) -> Tensor:
        """N,C,* to the same shape. Raises ValueError where a statistic has a single value."""
        self.check(x)
        check_groups(x, self.groups)
        # The map between the two norms is kept wide, unless the module itself was cast to half.
        wide = x if self.running_mean.dtype in HALF else as_float(x)
        dots = self._batch_norm(wide) if self.training else self.normalize_by_running(wide)
        weight, bias = self._per_channel(self.group_weight), self._per_channel(self.group_bias)
        return group_norm(dots, self.groups, weight, bias, self.eps).to(x.dtype)

    def _per_channel(self, of_groups: Tensor | None) -> Tensor | None:
        if of_groups is None:
            return None
        return of_groups.repeat_interleave(self.num_features // self.groups)

    def _batch_norm(self, x: Tensor) -> Tensor:
        if not self.estimate:
            self.check_batch(x)
        self.num_batches_tracked.add_(1)
        if not self.estimate:
            return torch.batch_norm(
                x, self.weight, self.bias, self.running_mean, self.running_var,
                True, self.momentum, self.eps, torch.backends.cudnn.enabled,
            )  # fmt: skip
        self._update(x.detach())
        mean, var = self.running_mean.clone(), self.running_var.clone()
        return torch.batch_norm(x, self.weight, self.bias, mean, var, False, 0.0, self.eps, False)

    def _update(self, x: Tensor) -> None:
        with torch.no_grad():
            mean, var = torch.batch_norm_update_stats(as_float(x), None, None, 0.0)
            deviation = var + (mean - self.running_mean).square()  # from the mean before
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_(deviation.to(self.running_var.dtype), self.momentum)

    def _load_from_state_dict(
        self, state_dict: MutableMapping[str, Any], prefix: str, *args: Any
    ) -> None:
        gamma = state_dict.get(f"{prefix}weight")
        own = f"{prefix}group_weight" in state_dict
        if not own and self.group_weight is not None and gamma is not None and not gamma.any():
            state_dict[f"{prefix}weight"] = torch.ones_like(gamma)
            state_dict[f"{prefix}group_weight"] = torch.zeros_like(self.group_weight)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """Also the number of groups in use."""
        return f"{super().extra_repr()}, groups={self.groups}, estimate={self.estimate}"
