"""Every method's training forward, written out from its paper in plain float64 torch.

The contract holds each layer's output and gradients against these, the gradients by autograd. Here
is no kernel, no fused op and no import of normbench, only sums, products and roots. A method
without an entry fails the contract: add its equation below (docs/methods.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class At:
    """Where a formula is evaluated.

    Attributes:
        state: the layer's parameters and buffers before the step, by name.
        params: the method's parameters, defaults filled in.
        act: the activation that the layer owns.
    """

    state: Mapping[str, Tensor]
    params: Mapping[str, Any]
    act: nn.Module | None

    @property
    def eps(self) -> float:
        """As given, else the 1e-5 that slots have."""
        eps = self.params["eps"]
        return 1e-5 if eps is None else float(eps)

    def affine(self, y: Tensor) -> Tensor:
        return on_channels(self.state["weight"], y) * y + on_channels(self.state["bias"], y)


Formula = Callable[[Tensor, At], Tensor]


def on_channels(values: Tensor, like: Tensor) -> Tensor:
    """C values shaped to broadcast over N,C,*."""
    return values.reshape(1, -1, *[1] * (like.dim() - 2))


def moments(x: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over these dims, which stay as ones."""
    mean = x.mean(dims, keepdim=True)
    return mean, (x - mean).square().mean(dims, keepdim=True)


def over_batch(x: Tensor) -> tuple[int, ...]:
    return (0, *range(2, x.dim()))


def by_groups(x: Tensor, groups: int, eps: float) -> Tensor:
    parts = x.reshape(x.shape[0], groups, -1)
    mean, var = moments(parts, (2,))
    return ((parts - mean) / (var + eps).sqrt()).reshape(x.shape)


def none(x: Tensor, at: At) -> Tensor:
    return at.affine(x) if at.params["affine"] else x


def batch_norm(x: Tensor, at: At) -> Tensor:
    mean, var = moments(x, over_batch(x))
    return at.affine((x - mean) / (var + at.eps).sqrt())


def batch_renorm(x: Tensor, at: At) -> Tensor:
    mean, var = moments(x, over_batch(x))
    std = (var + at.eps).sqrt()
    running_mean = on_channels(at.state["running_mean"], x)
    running_std = on_channels(at.state["running_std"], x)
    open_at_once = at.params["rmax_full"] == 0  # else this is the hold
    rmax, dmax = (at.params["rmax"], at.params["dmax"]) if open_at_once else (1.0, 0.0)
    r = (std / running_std).clamp(1 / rmax, rmax).detach()
    d = ((mean - running_mean) / running_std).clamp(-dmax, dmax).detach()
    return at.affine((x - mean) / std * r + d)


def moving_average_norm(x: Tensor, at: At) -> Tensor:
    mean = on_channels(at.state["running_mean"], x)
    return at.affine((x - mean) / (on_channels(at.state["running_var"], x) + at.eps).sqrt())


def group_norm(x: Tensor, at: At) -> Tensor:
    most = min(at.params["groups"], x.shape[1])
    groups = max(g for g in range(1, most + 1) if x.shape[1] % g == 0)
    return at.affine(by_groups(x, groups, at.eps))


def layer_norm_chw(x: Tensor, at: At) -> Tensor:
    mean, var = moments(x, tuple(range(1, x.dim())))
    return at.affine((x - mean) / (var + at.eps).sqrt())


def layer_norm_channels(x: Tensor, at: At) -> Tensor:
    mean, var = moments(x, (1,))
    return at.affine((x - mean) / (var + at.eps).sqrt())


def instance_norm(x: Tensor, at: At) -> Tensor:
    mean, var = moments(x, tuple(range(2, x.dim())))
    return at.affine((x - mean) / (var + at.eps).sqrt())


def proxy_norm(x: Tensor, at: At) -> Tensor:
    y = by_groups(x, at.params["groups"], at.eps)
    if at.act is None:
        return on_channels(at.state["weight"], x) * y
    gamma, beta = at.state["weight"], at.state["bias"]
    nodes, weights = normal_nodes(exact=at.params["exact"])
    proxy = (1 + at.state["proxy_weight"]) * nodes + at.state["proxy_bias"]
    phi = at.act(gamma * proxy + beta)
    mean = (weights * phi).sum(0)
    var = (weights * (phi - mean).square()).sum(0)
    out = at.act(at.affine(y)) - on_channels(mean, x)
    return out / on_channels((var + at.params["proxy_eps"]).sqrt(), x)


def normal_nodes(exact: bool) -> tuple[Tensor, Tensor]:
    """Columns of nodes and weights: 200 midpoint quantiles, or a fine trapezoid to ±12."""
    if not exact:
        normal = NormalDist()
        nodes = [normal.inv_cdf((k + 0.5) / 200) for k in range(200)]
        return torch.tensor(nodes, dtype=torch.float64)[:, None], torch.tensor(1 / 200).double()
    fine = torch.linspace(-12, 12, 20_001, dtype=torch.float64)[:, None]
    return fine, torch.exp(-fine.square() / 2) / math.sqrt(2 * math.pi) * (24 / 20_000)


FORMULAS: dict[str, Formula] = {
    "none": none,
    "batch_norm": batch_norm,
    "batch_renorm": batch_renorm,
    "moving_average_norm": moving_average_norm,
    "group_norm": group_norm,
    "layer_norm_chw": layer_norm_chw,
    "layer_norm_channels": layer_norm_channels,
    "instance_norm": instance_norm,
    "proxy_norm": proxy_norm,
    "weight_standardization": group_norm,
}
"""The activation side: y from x."""

SETTINGS: dict[str, tuple[dict[str, Any], ...]] = {
    "none": ({"affine": True},),
    "batch_renorm": ({"hold": 0, "rmax_full": 0, "dmax_full": 0},),
    "group_norm": ({"groups": 2, "eps": 0.1},),
    "proxy_norm": ({"groups": 2, "proxy_eps": 0.1}, {"exact": True}),
}
"""Parameters at which a formula is checked, beside the defaults: where it says something else."""


def standardized(weight: Tensor) -> Tensor:
    rows = weight.flatten(1)
    mean, var = moments(rows, (1,))
    unbiased = var * rows.shape[1] / (rows.shape[1] - 1)
    return ((rows - mean) / (unbiased.sqrt() + 1e-5)).reshape(weight.shape)


WEIGHT_FORMULAS: dict[str, Callable[[Tensor], Tensor]] = {"weight_standardization": standardized}
"""The weight side: the weight that a convolution uses, from the one that is learned."""
