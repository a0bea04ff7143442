"""Methods that act on weights or on whole residual branches, and what they leave at the slots."""

from __future__ import annotations

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
    weight_oracle,
)
from oracles.formulas.basics import batch_norm, standardized

oracle("weight_standardization_bn", {"momentum": 0.5, "eps": 0.1})(batch_norm)
weight_oracle("weight_standardization_bn")(standardized)


@oracle(
    "weight_norm",
    {"mean_only": True, "momentum": 0.5, "eps": 0.1},
    {"data_init": False},
    {"data_init": False, "mean_only": True},
    exact_gradient=False,  # the first batch's statistics are an initialisation, hence constants
)
def weight_norm(x: Tensor, at: At) -> Result:
    if not at.training:
        return at.affine(by_running(x, at))
    mean, var = moments(x, over_batch(x))
    fixed = [on_channels(at.state[f"running_{name}"], x) for name in ("mean", "var")]
    if at.params["data_init"] and at.state["num_batches_tracked"] == 0:
        fixed = [mean.detach(), var.detach()]
    after = {"running_mean": fixed[0], "running_var": fixed[1]}
    if at.params["mean_only"]:
        share = at.params["momentum"]
        after["running_mean"] = (1 - share) * fixed[0] + share * mean.detach()
        fixed[0] = mean
    y = (x - fixed[0]) / (fixed[1] + at.eps).sqrt()
    return at.affine(y), {name: value.flatten() for name, value in after.items()}


@weight_oracle("weight_norm")
def directed(weight: Tensor) -> Tensor:
    length = weight.flatten(1).square().sum(1).sqrt().reshape(-1, *[1] * (weight.dim() - 1))
    return length.detach() * weight / length  # g starts at the length and is learned apart


@oracle("scaled_ws", {"affine": False}, {"nonlinearity": "silu"})
def scaled_ws(x: Tensor, at: At) -> Result:
    return x if at.params["affine"] is False else at.affine(x)


@weight_oracle("scaled_ws")
def scaled_standardized(weight: Tensor) -> Tensor:
    rows = weight.flatten(1)
    mean, var = moments(rows, (1,))
    floor = torch.tensor(1e-4, dtype=rows.dtype)
    scale = 1.7139588594436646 / torch.maximum(var * rows.shape[1], floor).sqrt()
    return ((rows - mean) * scale).reshape(weight.shape)


@oracle(
    "cosine_norm",
    {"affine": False},
    exempt={
        "test_the_weight_in_use": "the convolution is divided by each patch's norm, which no "
        "weight expresses; tests/methods/test_cosine_norm.py compares with patches one by one",
    },
)
def cosine_norm(x: Tensor, at: At) -> Result:
    return x if at.params["affine"] is False else at.affine(x)


@oracle("batch_channel_norm", {"groups": 2, "eps": 0.1}, {"estimate": True, "momentum": 0.5})
def batch_channel_norm(x: Tensor, at: At) -> Result:
    mean, var = moments(x, over_batch(x))
    after = {}
    if not at.training:
        inner = by_running(x, at)
    elif at.params["estimate"]:
        before = on_channels(at.state["running_mean"], x)
        after = at.moved("running_mean", mean)
        after |= at.moved("running_var", (x - before).square().mean(over_batch(x)))
        inner = x - on_channels(after["running_mean"], x)
        inner = inner / (on_channels(after["running_var"], x) + at.eps).sqrt()
    else:
        after = averages(x, at)
        inner = (x - mean) / (var + at.eps).sqrt()
    groups = divisor(x.shape[1], at.params["groups"])
    y = by_groups(at.affine(inner), groups, at.eps).unflatten(1, (groups, -1))
    affine = [
        at.state[f"group_{n}"].reshape(1, -1, *[1] * (x.dim() - 1)) for n in ("weight", "bias")
    ]
    return (affine[0] * y + affine[1]).flatten(1, 2), after


weight_oracle("batch_channel_norm")(standardized)


@oracle("skip_init")
def skip_init(x: Tensor, at: At) -> Result:
    return at.state["multiplier"] * (x + on_channels(at.state["bias"], x))


@oracle("fixup")
def fixup(x: Tensor, at: At) -> Result:
    return at.state["multiplier"] * x + at.state["shift"]


@weight_oracle("fixup")
def as_it_is(weight: Tensor) -> Tensor:
    return 1 * weight


# A layer on its own knows no convolution and is batch norm; one behind a convolution is held
# against the paper's equations in tests/methods/test_cross_iteration_bn.py.
oracle("cross_iteration_bn", {"momentum": 0.5, "eps": 0.1})(batch_norm)
