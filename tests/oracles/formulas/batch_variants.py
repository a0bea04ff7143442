"""Batch norm with other chunks, other processes, other statistics or none of its own."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from oracles.formulas import (
    At,
    Result,
    averages,
    by_running,
    moments,
    on_channels,
    oracle,
    over_batch,
    over_space,
    pooled,
)


@oracle("ghost_batch_norm", {"ghost_size": 2}, {"ghost_size": 1, "momentum": 0.5, "eps": 0.1})
def ghost_batch_norm(x: Tensor, at: At) -> Result:
    if not at.training:
        return at.affine(by_running(x, at))
    outputs = []
    running = {name: at.state[name] for name in ("running_mean", "running_var")}
    for start in range(0, len(x), at.params["ghost_size"]):
        chunk = x[start : start + at.params["ghost_size"]]
        mean, var = moments(chunk, over_batch(x))
        outputs.append(at.affine((chunk - mean) / (var + at.eps).sqrt()))
        unbiased = var * pooled(chunk) / (pooled(chunk) - 1)
        for name, value in {"running_mean": mean, "running_var": unbiased}.items():
            share = at.params["momentum"]
            running[name] = (1 - share) * running[name] + share * value.detach().flatten()
    return torch.cat(outputs), running


@oracle("frozen_batch_norm", {"learn_affine": True, "eps": 0.1})
def frozen_batch_norm(x: Tensor, at: At) -> Result:
    names = ("weight", "bias", "running_mean", "running_var")
    gamma, beta, mean, var = (on_channels(at.state[name], x) for name in names)
    scale = gamma * (var + at.eps) ** -0.5
    y = scale * x + (beta - mean * scale)
    return y, {"num_batches_tracked": at.state["num_batches_tracked"]}


@oracle("sync_batch_norm", {"momentum": 0.5, "eps": 0.1})
def sync_batch_norm(x: Tensor, at: At) -> Result:
    """In the one process that the contract runs in; several are in tests/methods."""
    if not at.training:
        return at.affine(by_running(x, at))
    values = x.transpose(0, 1).flatten(1)
    mean = values.sum(1) / values.shape[1]
    var = values.square().sum(1) / values.shape[1] - mean.square()
    y = (x - on_channels(mean, x)) / on_channels((var + at.eps).sqrt(), x)
    unbiased = values.var(1)
    return at.affine(y), at.moved("running_mean", mean) | at.moved("running_var", unbiased)


@oracle("l1_batch_norm", {"momentum": 0.5, "eps": 0.1})
def l1_batch_norm(x: Tensor, at: At) -> Result:
    mean, std = (on_channels(at.state[f"running_{name}"], x) for name in ("mean", "std"))
    if not at.training:
        return at.affine((x - mean) / (std + at.eps))
    mean = x.sum(over_batch(x), keepdim=True) / pooled(x)
    # |x − μ| summed is twice what lies above μ.
    above = (x - mean).clamp(min=0).sum(over_batch(x), keepdim=True)
    std = math.sqrt(math.pi / 2) * 2 * above / pooled(x)
    state = at.moved("running_mean", mean) | at.moved("running_std", std)
    return at.affine((x - mean) / (std + at.eps)), state


@oracle(
    "inplace_abn",
    {"slope": 0.2, "eps": 0.1},
    exempt={
        "test_the_activation_is_applied_by_owners_and_ignored_by_others": "leaky ReLU, which can "
        "be inverted, stands in for whatever activation it takes over"
    },
)
def inplace_abn(x: Tensor, at: At) -> Result:
    if at.training:
        mean, var = moments(x, over_batch(x))
        y, state = (x - mean) / (var + at.eps).sqrt(), averages(x, at)
    else:
        y, state = by_running(x, at), {}
    z = on_channels(at.state["weight"].abs() + at.eps, x) * y + on_channels(at.state["bias"], x)
    if at.act is None:
        return z, state
    return torch.maximum(z, z * at.params["slope"]), state


@oracle("virtual_batch_norm", {"eps": 0.1})
def virtual_batch_norm(x: Tensor, at: At) -> Result:
    size = int(at.state["reference_size"])
    kept: dict[str, Tensor] = {}
    if at.training and size == 0:
        mean, square = (v.mean(over_batch(x), keepdim=True) for v in (x, x.square()))
        kept = {
            "reference_mean": mean.detach().flatten(),
            "reference_var": (square - mean.square()).detach().flatten(),
            "reference_size": torch.tensor(len(x)),
        }
    else:
        reference, var = (on_channels(at.state[f"reference_{n}"], x) for n in ("mean", "var"))
        own, own_square = (v.mean(over_space(x), keepdim=True) for v in (x, x.square()))
        new = 1 / (size + 1)
        mean = new * own + (1 - new) * reference
        square = new * own_square + (1 - new) * (var + reference.square())
    y = (x - mean) / (at.eps + square - mean.square()).sqrt()
    return at.affine(y), kept
