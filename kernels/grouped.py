"""Normalization of each sample by the statistics of its groups of channels, on the native op.

group_norm, layer_norm_chw (one group), instance_norm (one channel a group), the norm inside
proxy_norm and the one beside weight standardization are all this function.
"""

from __future__ import annotations

import torch
from torch import Tensor

from normbench.kernels.channels import HALF, keep_format


def largest_group_count(num_features: int, groups: int) -> int:
    """The largest divisor of C that is not above `groups`."""
    return next(g for g in range(min(groups, num_features), 0, -1) if num_features % g == 0)


def check_groups(x: Tensor, groups: int) -> None:
    """Raises ValueError if a group of N,C,* input pools a single value."""
    values = x.shape[1] // groups * x.shape[2:].numel()
    if values < 2:
        raise ValueError(
            f"a statistic over {x.shape[1] // groups} channels needs at least 2 values per "
            f"channel group to have a variance, got {values} (values per channel and sample: "
            f"{x.shape[2:].numel()}): input of shape {tuple(x.shape)}, {groups} groups"
        )


def group_norm(
    x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    r"""gamma·(x − μ_g)/√(σ²_g + eps) + beta, biased variance, per sample and group.

    Statistics are float32 for half inputs; the result has the input's type and memory format.

    Raises:
        ValueError: if a group pools a single value, so that it has no variance.
    """
    check_groups(x, groups)
    if x.dtype in HALF:
        wide = [None if p is None else p.float() for p in (weight, bias)]
        y = torch.group_norm(x.float(), groups, wide[0], wide[1], eps).to(x.dtype)
    else:
        y = torch.group_norm(x, groups, weight, bias, eps)
    return keep_format(y, x) if x.is_cuda else y
