"""The methods with kernels of their own: the equation of the method they fuse, then φ."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from oracles.formulas import At, Result, oracle
from oracles.formulas.basics import (
    batch_norm,
    batch_renorm,
    group_norm,
    layer_norm_chw,
    proxy_norm,
)


def activated(result: Result, at: At) -> Result:
    if isinstance(result, tuple):
        y, state = result
        return at.activate(y), state
    return at.activate(result)


@oracle("batch_norm_triton", {"momentum": 0.5, "eps": 0.1})
def batch_norm_triton(x: Tensor, at: At) -> Result:
    return activated(batch_norm(x, at), at)


@oracle("batch_renorm_triton", {"hold": 0, "rmax_full": 0, "dmax_full": 0, "momentum": 0.1})
def batch_renorm_triton(x: Tensor, at: At) -> Result:
    """σ is averaged; what is kept of it is σ² − eps."""
    state = {**at.state, "running_std": (at.state["running_var"] + at.eps).sqrt()}
    result = batch_renorm(x, replace(at, state=state))
    if isinstance(result, tuple):
        y, after = result
        var = after.pop("running_std").square() - at.eps
        result = (y, after | {"running_var": var})
    return activated(result, at)


@oracle("group_norm_triton", {"groups": 2, "eps": 0.1})
def group_norm_triton(x: Tensor, at: At) -> Result:
    return activated(group_norm(x, at), at)


@oracle("layer_norm_chw_triton")
def layer_norm_chw_triton(x: Tensor, at: At) -> Result:
    return activated(layer_norm_chw(x, at), at)


@oracle("proxy_norm_triton", {"groups": 2, "proxy_eps": 0.1}, {"exact": True})
def proxy_norm_triton(x: Tensor, at: At) -> Result:
    return proxy_norm(x, at)
