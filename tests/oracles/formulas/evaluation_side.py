"""Batch norms that differ in what they know in evaluation: the batch, the sample, the domain."""

from __future__ import annotations

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


@oracle(
    "adaptive_batch_norm",
    {"source_weight": 5.0, "momentum": 0.5, "eps": 0.1},
    exempt={
        "test_evaluation_gives_every_sample_its_own_result": "evaluation takes the statistics of "
        "the evaluation batch: by definition a sample's result depends on the others",
    },
)
def adaptive_batch_norm(x: Tensor, at: At) -> Result:
    mean, var = moments(x, over_batch(x))
    if not at.training:
        source, n = at.params["source_weight"], x.shape[0]
        run_mean, run_var = (on_channels(at.state[f"running_{s}"], x) for s in ("mean", "var"))
        mean = (source * run_mean + n * mean) / (source + n)
        var = (source * run_var + n * var) / (source + n)
    y = at.affine((x - mean) / (var + at.eps).sqrt())
    return (y, averages(x, at)) if at.training else y


@oracle(
    "four_things",
    {"ghost_size": 2, "momentum": 0.5},
    {"ghost_size": 3, "alpha": 0.7, "eps": 0.1},
    {"ghost_size": 4, "alpha": 0.0},
)
def four_things(x: Tensor, at: At) -> Result:
    """With raw moments, as in the paper; running_var is E[x²] − E[x]² of the running ones."""
    first = at.state["running_mean"]
    second = at.state["running_var"] + first.square()
    size, alpha = at.params["ghost_size"], at.params["alpha"]
    if not at.training:
        alpha = 1 / size if alpha is None else alpha
        own, square = (v.mean(over_space(x), keepdim=True) for v in (x, x * x))
        mean = (1 - alpha) * on_channels(first, x) + alpha * own
        var = (1 - alpha) * on_channels(second, x) + alpha * square - mean.square()
        return at.affine((x - mean) / (var + at.eps).sqrt())
    ghosts = []
    for ghost in torch.tensor_split(x, max(1, (x.shape[0] + size - 1) // size)):
        mean, var = moments(ghost, over_batch(ghost))
        ghosts.append((ghost - mean) / (var + at.eps).sqrt())
    dims, share = over_batch(x), at.params["momentum"]
    first = (1 - share) * first + share * x.detach().mean(dims)
    second = (1 - share) * second + share * x.detach().square().mean(dims)
    state = {"running_mean": first, "running_var": second - first.square()}
    return at.affine(torch.cat(ghosts)), state


@oracle(
    "instance_aware_batch_norm",
    {"k": 0.5, "momentum": 0.5},
    {"k": 0.0, "eps": 0.1},
    {"k": 0.5, "correct_training": False},
)
def instance_aware_batch_norm(x: Tensor, at: At) -> Result:
    """Soft shrinkage as two rectifiers, all variances unbiased."""
    mean, var = moments(x, over_batch(x))
    state = averages(x, at) if at.training else {}
    if at.training and not at.params["correct_training"]:
        return at.affine((x - mean) / (var + at.eps).sqrt()), state
    var = var * pooled(x) / (pooled(x) - 1)
    if not at.training:
        mean, var = (on_channels(at.state[f"running_{s}"], x) for s in ("mean", "var"))
    size = x[0, 0].numel()
    own_mean, own_var = moments(x, over_space(x))
    own_var = own_var * size / (size - 1)
    mean_error = ((var + at.eps) / size).sqrt()
    var_error = (var + at.eps) * (2 / (size - 1)) ** 0.5
    mean = mean + shrunk(own_mean - mean, at.params["k"] * mean_error)
    var = var + shrunk(own_var - var, at.params["k"] * var_error)
    y = at.affine((x - mean) / (var.relu() + at.eps).sqrt())
    return (y, state) if at.training else y


def shrunk(d: Tensor, threshold: Tensor) -> Tensor:
    return (d - threshold).relu() - (-d - threshold).relu()


@oracle(
    "domain_batch_norm",
    {"domains": 3, "momentum": 0.5, "eps": 0.1},
    {"domains": 1},
    exempt={
        "test_autocast_stays_finite_and_in_its_own_type": "without domains.using no sample is of "
        "the second domain, whose parameters then have no gradient to look at; "
        "tests/methods/test_domain_batch_norm.py looks at both under autocast",
    },
)
def domain_batch_norm(x: Tensor, at: At) -> Result:
    """Without domains.using: batch norm by the first domain, and the others stay as they are."""
    if not at.training:
        return at.affine(by_running(x, at))
    mean, var = moments(x, over_batch(x))
    return at.affine((x - mean) / (var + at.eps).sqrt()), averages(x, at)
