"""The launches of batch norm and Batch Renorm: which kernels, with which tiles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from normbench.kernels.fused import cooperative, looped, resident, streaming
from normbench.kernels.fused.activations import IDENTITY, RELU
from normbench.kernels.fused.batch_plans import (
    Plan,
    at_once,
    over_tiles,
    per_channel,
    plan,
    training_plan,
    whole,
)
from normbench.kernels.fused.tiles import view

NO_RUNNING = dict.fromkeys(("kept", "weight", "bias", "running_mean", "running_var"))
"""What `apply` is not given where it has `saved`."""

READ = ("g", "x", "saved", "residual", "bits")
"""What all passes of the backward are given."""


@dataclass(frozen=True, slots=True)
class Renorm:
    """What Batch Renorm adds: its step counters on the device, and its schedule.

    Attributes:
        step: training forwards so far, one int64.
        active: training forwards so far in which some r ≠ 1, one int64.
        newest: the last of them, one int64; lets the programs of a launch count it once.
        limits: rmax, dmax, hold, rmax_full and dmax_full, in training forwards.
    """

    step: Tensor
    active: Tensor
    newest: Tensor
    limits: tuple[float, float, float, float, float]


def forward(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    act: int,
    keep_bits: bool,
    counted: Tensor | None,
    renorm: Renorm | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Training forward of a dense x: y, the rows of `saved` (channel_math.py), the mask of bits.

    Raises `counted` by one; not beside `renorm`, whose step it would be.
    """
    v = view(x, residual)
    y, saved, bits = outputs(x, act, residual is not None and keep_bits, renorm is not None)
    masked = bits if bits.numel() else None
    settled: dict[str, Any] = {
        "saved": saved, "weight": weight, "bias": bias,
        "running_mean": running_mean, "running_var": running_var,
        **_of_steps(counted, renorm),
        "eps": eps, "momentum": momentum, "unbias": v.values / (v.values - 1),
    }  # fmt: skip
    io: dict[str, Any] = {"x": x, "y": y, "residual": residual, "bits": masked}
    flag = {"RENORM": renorm is not None}
    to = training_plan(v, x)
    if to.way in ("resident", "looped"):
        kernel = looped.looped_forward if to.way == "looped" else resident.resident_forward
        whole(kernel, to, {**io, **settled, "values": float(v.values)}, {**flag, "ACT": act})
        return y, saved, bits
    staging = x.new_empty((4, to.cut.splits, v.channels), dtype=torch.float32)
    settled["staging"] = staging
    if to.way == "cooperative":
        at_once(cooperative.cooperative_forward, to, {**io, **settled}, {**flag, "ACT": act})
        return y, saved, bits
    over_tiles(streaming.stats, to, {"x": x, "staging": staging, "SPLITS": to.cut.splits}, {})
    per_channel(streaming.settle, v.channels, to.cut, settled, flag)
    over_tiles(streaming.apply, to, {**io, "saved": saved, **NO_RUNNING, "eps": eps}, {"ACT": act})
    return y, saved, bits


def outputs(x: Tensor, act: int, masked: bool, renorm: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Y, the rows per channel and the mask (empty unless ReLU follows a residual), unwritten."""
    saved = x.new_empty((7 if renorm else 5, x.shape[1]), dtype=torch.float32)
    size = view(x).bytes_of_bits if masked and act == RELU else 0
    return torch.empty_like(x), saved, x.new_empty(size, dtype=torch.uint8)


def evaluate(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    eps: float,
    act: int,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """Evaluation forward of a dense x, by the running values: one launch.

    Returns y and, to `keep` for the backward, the rows of `saved`.
    """
    v = view(x, residual)
    y, saved = torch.empty_like(x), x.new_empty((5 if keep else 0, v.channels), dtype=torch.float32)
    if not x.numel():
        return y, saved
    arguments = {
        "x": x, "y": y, "saved": None, "residual": residual, "bits": None,
        "kept": saved if keep else None, "weight": weight, "bias": bias,
        "running_mean": running_mean, "running_var": running_var, "eps": eps,
    }  # fmt: skip
    over_tiles(streaming.apply, plan(v, x.device, streaming=True), arguments, {"ACT": act})
    return y, saved


def backward(
    g: Tensor,
    x: Tensor,
    saved: Tensor,
    residual: Tensor | None,
    bits: Tensor,
    act: int,
    of_residual: bool,
    of_affine: bool,
    evaluating: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, and where asked of gamma and beta (in float32) and of the residual.

    g and the residual have x's layout. The residual's is empty where no activation follows: it is g
    itself then. Evaluation takes one pass: its dx needs no sums.
    """
    v = view(x, g, residual)
    dx, d_weight, d_bias, d_residual = found = gradients(x, act, of_residual, of_affine)
    if not x.numel():
        return dx, d_weight.zero_(), d_bias.zero_(), d_residual
    settled = {
        "d_weight": d_weight if of_affine else None, "d_bias": d_bias if of_affine else None,
        "values": float(v.values),
    }  # fmt: skip
    written = d_residual if d_residual.numel() else None
    read: dict[str, Any] = {
        "g": g, "x": x, "saved": saved,
        "residual": residual, "bits": bits if bits.numel() else None,
    }  # fmt: skip
    fixed = {"RENORM": saved.shape[0] == 7, "ACT": act}
    given = {**read, **settled, "d_residual": written, "dx": dx}
    to = plan(v, x.device) if evaluating else training_plan(v, x)
    if to.way in ("resident", "looped"):
        kernel = looped.looped_backward if to.way == "looped" else resident.resident_backward
        whole(kernel, to, given, {**fixed, "EVAL": evaluating})
    elif evaluating:
        _evaluated_backward(to, given, fixed)
    else:
        given["staging"] = x.new_empty((2, to.cut.splits, v.channels), dtype=torch.float32)
        given["means"] = x.new_empty((2, v.channels), dtype=torch.float32)
        if to.way == "cooperative":
            at_once(cooperative.cooperative_backward, to, given, fixed)
        else:
            _streaming_backward(to, given, fixed)
    return found


def _streaming_backward(to: Plan, given: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    read, act, written = {name: given[name] for name in READ}, fixed["ACT"], given["d_residual"]
    first = {"d_residual": written, "dx": None, "staging": given["staging"]}
    first["SPLITS"] = to.cut.splits
    over_tiles(streaming.backward_stats, to, {**read, **first}, {"ACT": act})
    _settle_backward(to, given, fixed["RENORM"], evaluating=False)
    if written is not None:  # dz has been written: nothing has to be computed again
        act, read = IDENTITY, {**read, "g": written, "residual": None, "bits": None}
    last = {"means": given["means"], "dx": given["dx"]}
    over_tiles(streaming.backward_apply, to, {**read, **last}, {"ACT": act})


def _evaluated_backward(to: Plan, given: Mapping[str, Any], fixed: Mapping[str, Any]) -> None:
    x, splits = given["x"], to.cut.splits
    staging = None
    if given["d_weight"] is not None:
        staging = x.new_empty((2, splits, x.shape[1]), dtype=torch.float32)
    names = (*READ, "d_residual", "dx")
    arguments = {name: given[name] for name in names} | {"staging": staging, "SPLITS": splits}
    over_tiles(streaming.backward_stats, to, arguments, {"ACT": fixed["ACT"]})
    if staging is not None:
        sums = {**given, "staging": staging, "means": None}
        _settle_backward(to, sums, fixed["RENORM"], evaluating=True)


def _settle_backward(to: Plan, given: Mapping[str, Any], renorm: bool, evaluating: bool) -> None:
    names = ("staging", "saved", "means", "d_weight", "d_bias", "values")
    constants = {"RENORM": renorm, "EVAL": evaluating}
    arguments = {name: given[name] for name in names}
    per_channel(streaming.backward_settle, given["x"].shape[1], to.cut, arguments, constants)


def gradients(
    x: Tensor, act: int, of_residual: bool, of_affine: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Unwritten tensors for what `backward` returns; empty for what is not asked for."""
    channels = x.shape[1] if of_affine else 0
    return (
        torch.empty_like(x),
        x.new_empty(channels, dtype=torch.float32),
        x.new_empty(channels, dtype=torch.float32),
        torch.empty_like(x) if of_residual and act != IDENTITY else x.new_empty(0),
    )


def _of_steps(counted: Tensor | None, renorm: Renorm | None) -> dict[str, Any]:
    names = ("rmax", "dmax", "hold", "rfull", "dfull")
    if renorm is None:
        limits = dict(zip(names, (1.0, 0.0, 0.0, 1.0, 1.0), strict=True))
        return {"step": counted, "active": None, "newest": None, **limits}
    limits = dict(zip(names, renorm.limits, strict=True))
    return {"step": renorm.step, "active": renorm.active, "newest": renorm.newest, **limits}
