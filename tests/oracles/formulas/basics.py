"""The methods that every comparison has: batch, group, layer, instance and proxy norm."""

from __future__ import annotations

import math
from statistics import NormalDist

import torch
from torch import Tensor

from oracles.formulas import (
    At,
    Result,
    averages,
    by_groups,
    by_running,
    divisor,
    moments,
    on_channels,
    oracle,
    over_batch,
    over_space,
    weight_oracle,
)


@oracle("none", {"affine": True})
def none(x: Tensor, at: At) -> Result:
    return at.affine(x) if at.params["affine"] else x


@oracle("batch_norm", {"momentum": 0.5, "eps": 0.1})
def batch_norm(x: Tensor, at: At) -> Result:
    if not at.training:
        return at.affine(by_running(x, at))
    mean, var = moments(x, over_batch(x))
    return at.affine((x - mean) / (var + at.eps).sqrt()), averages(x, at)


@oracle("batch_renorm", {"hold": 0, "rmax_full": 0, "dmax_full": 0, "momentum": 0.1})
def batch_renorm(x: Tensor, at: At) -> Result:
    running_mean = on_channels(at.state["running_mean"], x)
    running_std = on_channels(at.state["running_std"], x)
    if not at.training:
        return at.affine((x - running_mean) / running_std)
    mean, var = moments(x, over_batch(x))
    std = (var + at.eps).sqrt()
    open_at_once = at.params["rmax_full"] == 0  # else this is the hold
    rmax, dmax = (at.params["rmax"], at.params["dmax"]) if open_at_once else (1.0, 0.0)
    r = (std / running_std).clamp(1 / rmax, rmax).detach()
    d = ((mean - running_mean) / running_std).clamp(-dmax, dmax).detach()
    state = at.moved("running_mean", mean) | at.moved("running_std", std)
    return at.affine((x - mean) / std * r + d), state


@oracle("moving_average_norm")
def moving_average_norm(x: Tensor, at: At) -> Result:
    y = at.affine(by_running(x, at))
    return (y, averages(x, at)) if at.training else y


@oracle("group_norm", {"groups": 2, "eps": 0.1})
def group_norm(x: Tensor, at: At) -> Result:
    return at.affine(by_groups(x, divisor(x.shape[1], at.params["groups"]), at.eps))


@oracle("weight_standardization")
def weight_standardization(x: Tensor, at: At) -> Result:
    return group_norm(x, at)


@oracle("layer_norm_chw")
def layer_norm_chw(x: Tensor, at: At) -> Result:
    mean, var = moments(x, tuple(range(1, x.dim())))
    return at.affine((x - mean) / (var + at.eps).sqrt())


@oracle("layer_norm_channels")
def layer_norm_channels(x: Tensor, at: At) -> Result:
    mean, var = moments(x, (1,))
    return at.affine((x - mean) / (var + at.eps).sqrt())


@oracle("instance_norm")
def instance_norm(x: Tensor, at: At) -> Result:
    mean, var = moments(x, over_space(x))
    return at.affine((x - mean) / (var + at.eps).sqrt())


@oracle("proxy_norm", {"groups": 2, "proxy_eps": 0.1}, {"exact": True})
def proxy_norm(x: Tensor, at: At) -> Result:
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


@weight_oracle("weight_standardization")
def standardized(weight: Tensor) -> Tensor:
    rows = weight.flatten(1)
    mean, var = moments(rows, (1,))
    unbiased = var * rows.shape[1] / (rows.shape[1] - 1)
    return ((rows - mean) / (unbiased.sqrt() + 1e-5)).reshape(weight.shape)
