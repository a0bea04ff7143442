"""Methods that mix or pool the statistics of batch, instance and layer norm."""

from __future__ import annotations

import torch
from torch import Tensor

from oracles.formulas import (
    At,
    Result,
    averages,
    by_running,
    divisor,
    moments,
    on_channels,
    oracle,
    over_batch,
    over_space,
)


@oracle("switchable_norm", {"momentum": 0.5, "eps": 0.1})
def switchable_norm(x: Tensor, at: At) -> Result:
    """As the authors' code: from E[x] and E[x²] of the instances, whose variance is unbiased."""
    parts = x.flatten(2)
    mean_in, var_in = parts.mean(2), parts.var(2)
    square = var_in + mean_in**2
    mean_ln = mean_in.mean(1, keepdim=True)
    mean_bn = mean_in.mean(0, keepdim=True)
    var_ln = square.mean(1, keepdim=True) - mean_ln**2
    var_bn = square.mean(0, keepdim=True) - mean_bn**2
    state = at.moved("running_mean", mean_bn) | at.moved("running_var", var_bn)
    if not at.training:
        mean_bn, var_bn, state = at.state["running_mean"], at.state["running_var"], {}
    m, v = (at.state[f"{name}_weight"].exp() for name in ("mean", "var"))
    mean = (m[0] * mean_in + m[1] * mean_ln + m[2] * mean_bn) / m.sum()
    var = (v[0] * var_in + v[1] * var_ln + v[2] * var_bn) / v.sum()
    y = (parts - mean[:, :, None]) / (var + at.eps).sqrt()[:, :, None]
    return at.affine(y.reshape(x.shape)), state


@oracle("ibn_a", {"ratio": 0.25, "momentum": 0.5, "eps": 0.1}, {"ratio": 0.0}, {"ratio": 1.0})
def ibn_a(x: Tensor, at: At) -> Result:
    half = int(x.shape[1] * at.params["ratio"])
    mean, var = moments(x, over_space(x))
    instance = (x - mean) / (var + at.eps).sqrt()
    mean, var = moments(x, over_batch(x))
    batch = (x - mean) / (var + at.eps).sqrt() if at.training else by_running(x, at)
    y = at.affine(torch.cat([instance[:, :half], batch[:, half:]], 1))
    if not at.training:
        return y
    state = {
        name: torch.cat([at.state[name][:half], moved[half:]])
        for name, moved in averages(x, at).items()
    }
    return y, state


@oracle("batch_group_norm", {"groups": 2, "momentum": 0.5, "eps": 0.1}, {"groups": 3})
def batch_group_norm(x: Tensor, at: At) -> Result:
    groups = divisor(x.shape[1], at.params["groups"])
    parts = x.reshape(x.shape[0], groups, -1)
    mean, var = moments(parts, (0, 2))
    unbiased = parts.transpose(0, 1).flatten(1).var(1)
    state = at.moved("running_mean", mean) | at.moved("running_var", unbiased)
    if not at.training:
        mean, var, state = at.state["running_mean"], at.state["running_var"], {}
        mean, var = mean[:, None], var[:, None]
    y = (parts - mean) / (var + at.eps).sqrt()
    return at.affine(y.reshape(x.shape)), state


@oracle("representative_batch_norm", {"momentum": 0.5, "eps": 0.1})
def representative_batch_norm(x: Tensor, at: At) -> Result:
    calibrated = x + on_channels(at.state["center_weight"], x) * x.mean(over_space(x), keepdim=True)
    if at.training:
        mean, var = moments(calibrated, over_batch(x))
        normalized, state = (calibrated - mean) / (var + at.eps).sqrt(), averages(calibrated, at)
    else:
        normalized, state = by_running(calibrated, at), {}
    gap = normalized.mean(over_space(x), keepdim=True)
    w_v, w_b = (on_channels(at.state[f"scale_{name}"], x) for name in ("weight", "bias"))
    return at.affine(normalized / (1 + (-w_v * gap - w_b).exp())), state


@oracle("variance_only_batch_norm", {"momentum": 0.5, "eps": 0.1})
def variance_only_batch_norm(x: Tensor, at: At) -> Result:
    if not at.training:
        return at.affine(x / (on_channels(at.state["running_var"], x) + at.eps).sqrt())
    _, var = moments(x, over_batch(x))
    return at.affine(x / (var + at.eps).sqrt()), averages(x, at)


@oracle("mode_norm", {"modes": 3, "momentum": 0.5, "eps": 0.1}, {"modes": 1})
def mode_norm(x: Tensor, at: At) -> Result:
    modes, channels, space = at.params["modes"], x.shape[1], over_space(x)
    logits = x.mean(space) @ at.state["gate_weight"].reshape(modes, channels).T
    gates = (logits + at.state["gate_bias"]).exp()
    gates = gates / gates.sum(1, keepdim=True)
    y, means, squares = torch.zeros_like(x), [], []
    for k in range(modes):
        g = gates[:, k].reshape(-1, *[1] * (x.dim() - 1))
        mean = (g * x).mean(space, keepdim=True).sum(0, keepdim=True) / g.sum()
        var = (g * (x - mean) ** 2).mean(space, keepdim=True).sum(0, keepdim=True) / g.sum()
        means.append(mean.flatten())
        squares.append(((g * x**2).mean(space).sum(0) / g.sum()).flatten())
        if not at.training:
            of_mode = slice(k * channels, (k + 1) * channels)
            mean = on_channels(at.state["running_mean"][of_mode], x)
            var = on_channels(at.state["running_square"][of_mode], x) - mean**2
        y = y + g * (x - mean) / (var + at.eps).sqrt()
    if not at.training:
        return at.affine(y)
    state = at.moved("running_mean", torch.cat(means))
    return at.affine(y), state | at.moved("running_square", torch.cat(squares))


@oracle("extended_batch_norm", {"momentum": 0.5, "eps": 0.1})
def extended_batch_norm(x: Tensor, at: At) -> Result:
    mean, var = x.mean(over_batch(x), keepdim=True), x.var(correction=0)
    state = at.moved("running_mean", mean) | at.moved("running_layer_var", x.var())
    if not at.training:
        mean, state = on_channels(at.state["running_mean"], x), {}
        var = at.state["running_layer_var"]
    return at.affine((x - mean) / (var + at.eps).sqrt()), state


@oracle("mean_only_batch_norm", {"momentum": 0.5})
def mean_only_batch_norm(x: Tensor, at: At) -> Result:
    bias = on_channels(at.state["bias"], x)
    if not at.training:
        return x - on_channels(at.state["running_mean"], x) + bias
    mean = x.mean(over_batch(x), keepdim=True)
    return x - mean + bias, at.moved("running_mean", mean)
