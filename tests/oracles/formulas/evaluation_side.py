"""Batch norms that differ in what they know in evaluation: the batch, the sample, the domain."""

from __future__ import annotations

import torch
from torch import Tensor

from oracles.formulas import (
    At,
    Result,
    averages,
    moments,
    on_channels,
    oracle,
    over_batch,
    over_space,
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
