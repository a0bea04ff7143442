"""Methods of single samples and single values: RMS, filter response, EvoNorm, tanh, erf, LRN."""

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
    pooled,
)


@oracle("rms_norm", {"eps": 0.1})
def rms_norm(x: Tensor, at: At) -> Result:
    mean_square = (x * x).sum(1, keepdim=True) / x.shape[1]
    return on_channels(at.state["weight"], x) * x / (mean_square + at.eps).sqrt()


IN_ITS_PLACE = "the method is itself the nonlinearity, in the place of the activation at the slot"


@oracle(
    "filter_response_norm",
    {"eps": 0.1},
    {"learn_eps": True},
    exempt={"test_the_activation_is_applied_by_owners_and_ignored_by_others": IN_ITS_PLACE},
)
def filter_response_norm(x: Tensor, at: At) -> Result:
    eps = at.state["learned_eps"].abs() if at.params["learn_eps"] else at.eps
    mean_square = moments(x * x, over_space(x))[0]
    y = at.affine(x / (mean_square + eps).sqrt())
    if at.act is None:
        return y
    tau = on_channels(at.state["tau"], y).expand_as(y)
    return torch.where(y > tau, y, tau)


@oracle(
    "evonorm_s0",
    {"groups": 2, "eps": 0.1},
    exempt={"test_the_activation_is_applied_by_owners_and_ignored_by_others": IN_ITS_PLACE},
)
def evonorm_s0(x: Tensor, at: At) -> Result:
    if at.act is None:
        return at.affine(x)
    groups = x.reshape(x.shape[0], divisor(x.shape[1], at.params["groups"]), -1)
    deviation = (moments(groups, (2,))[1] + at.eps).sqrt().expand_as(groups).reshape(x.shape)
    return at.affine(x / (1 + (-on_channels(at.state["v"], x) * x).exp()) / deviation)


@oracle(
    "evonorm_b0",
    {"momentum": 0.5, "eps": 0.1},
    exempt={"test_the_activation_is_applied_by_owners_and_ignored_by_others": IN_ITS_PLACE},
)
def evonorm_b0(x: Tensor, at: At) -> Result:
    if at.act is None:
        return at.affine(x)
    var = moments(x, over_batch(x))[1]
    instance = (moments(x, over_space(x))[1] + at.eps).sqrt()
    used = var if at.training else on_channels(at.state["running_var"], x)
    batch = (used + at.eps).sqrt().expand_as(x)
    other = on_channels(at.state["v"], x) * x + instance
    y = at.affine(x / torch.where(other > batch, other, batch))
    unbiased = var * pooled(x) / (pooled(x) - 1)
    return (y, at.moved("running_var", unbiased)) if at.training else y


@oracle("dyt", {"alpha": 1.5})
def dyt(x: Tensor, at: At) -> Result:
    grown = (2 * at.state["alpha"] * x).exp()
    return at.affine(1 - 2 / (grown + 1))


@oracle("derf", {"alpha": 1.5, "shift": -0.4})
def derf(x: Tensor, at: At) -> Result:
    z = at.state["alpha"] * x + at.state["shift"]
    return at.affine(1 - torch.special.erfc(z))


@oracle(
    "local_response_norm",
    {"size": 3, "alpha": 0.7, "beta": 1.3, "k": 0.5, "affine": True},
    {"size": 11, "alpha": 0.2},
)
def local_response_norm(x: Tensor, at: At) -> Result:
    reach, channels = (at.params["size"] - 1) // 2, x.shape[1]
    sums = [
        sum(x[:, j] ** 2 for j in range(max(0, c - reach), min(channels - 1, c + reach) + 1))
        for c in range(channels)
    ]
    base = at.params["k"] + at.params["alpha"] * torch.stack(sums, 1)
    y = x / base ** at.params["beta"]
    return at.affine(y) if at.params["affine"] else y


@oracle(
    "batch_instance_norm",
    {"momentum": 0.5, "eps": 0.1, "affine": False},
    exempt={
        "test_gradients_are_those_of_the_forward_by_finite_differences": "a training forward "
        "projects rho onto [0, 1], as the paper does after each step: differences across the "
        "bound are one-sided (tests/methods has those inside)",
        "test_without_affine_there_is_nothing_to_learn_and_gradients_flow": "the gate rho is "
        "the method itself and is learned without gamma and beta too",
    },
)
def batch_instance_norm(x: Tensor, at: At) -> Result:
    raw = at.state["rho"]
    clipped = raw + (raw.clamp(0, 1) - raw).detach() if at.training else raw.clamp(0, 1)
    rho = on_channels(clipped, x)
    mean, var = moments(x, over_batch(x))
    whole = (x - mean) / (var + at.eps).sqrt() if at.training else by_running(x, at)
    mean, var = moments(x, over_space(x))
    mixed = rho * whole + (1 - rho) * (x - mean) / (var + at.eps).sqrt()
    y = at.affine(mixed) if at.params["affine"] is not False else mixed
    return (y, averages(x, at)) if at.training else y
