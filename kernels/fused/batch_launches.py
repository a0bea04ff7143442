"""The launches of batch norm and Batch Renorm: which kernels, with which tiles."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from normbench.kernels.fused import cooperative, looped, resident, streaming
from normbench.kernels.fused.activations import IDENTITY, RELU
from normbench.kernels.fused.dispatch import interpreted
from normbench.kernels.fused.launch import Launch, power_of_two, run
from normbench.kernels.fused.tiles import (
    Cut,
    View,
    cooperative_cut,
    looped_cut,
    resident_cut,
    streaming_cut,
    view,
)

STAGES = 2
"""Tiles in flight in the loops."""

COOPERATIVE = 0
"""Programs of a multiprocessor that the cooperative way counts on: 2 always fit, 4 where a thread
has at most 128 registers. 0: it is never taken, since no GPU has run it yet."""

MERGED = 2048
"""Results of splits that a program merges at once: 16 in each thread of 4 warps."""

NO_RUNNING = dict.fromkeys(("kept", "weight", "bias", "running_mean", "running_var"))
"""What `apply` is not given where it has `saved`."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The way that the kernels take over a view, and what they are given for it."""

    way: Literal["resident", "looped", "cooperative", "streaming"]
    cut: Cut
    arguments: Mapping[str, int]
    constants: Mapping[str, int | bool]


@functools.lru_cache(maxsize=4096)
def plan(
    v: View, device: torch.device, streaming: bool = False, together: tuple[int, int] = (0, 0)
) -> Plan:
    """The first way that fits, or `streaming`.

    Worked out once for a view: a training step meets the same ones again and again. The cooperative
    way is among them if `together`, COOPERATIVE and bytes of an element, names programs.
    """
    cut = None if streaming else resident_cut(v)
    if cut is not None:
        return Plan("resident", cut, v.sizes(), {**v.constants(), "R": cut.R, "K": cut.K})
    way: Literal["looped", "cooperative", "streaming"] = "looped"
    cut = None if streaming else looped_cut(v)
    if cut is None and together[0] and not streaming and torch.version.hip is None:
        way, cut = "cooperative", cooperative_cut(v, device, *together)
    if cut is None:
        way, cut = "streaming", streaming_cut(v, device)
    arguments = {**v.sizes(), "tiles": cut.tiles}
    if way != "looped":
        arguments["per_split"] = cut.per_split
    constants = {**v.constants(), "R": cut.R, "K": cut.K, "STAGES": STAGES}
    return Plan(way, cut, arguments, constants)


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
    to = plan(v, x.device, together=(COOPERATIVE, x.element_size()))
    if to.way in ("resident", "looped"):
        kernel = looped.looped_forward if to.way == "looped" else resident.resident_forward
        _whole(kernel, to, {**io, **settled, "values": float(v.values)}, {**flag, "ACT": act})
        return y, saved, bits
    splits = to.cut.splits
    staging = x.new_empty((4, splits, v.channels), dtype=torch.float32)
    if to.way == "cooperative":
        given = {**io, **settled, "staging": staging}
        _together(cooperative.cooperative_forward, to, x, given, {**flag, "ACT": act})
        return y, saved, bits
    _pass(streaming.stats, to, {"x": x, "staging": staging, "SPLITS": splits}, {})
    _per_channel(streaming.settle, v, to.cut, {"staging": staging, **settled}, flag)
    _pass(streaming.apply, to, {**io, "saved": saved, **NO_RUNNING, "eps": eps}, {"ACT": act})
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
    _pass(streaming.apply, plan(v, x.device, streaming=True), arguments, {"ACT": act})
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
    flags = {"RENORM": saved.shape[0] == 7, "EVAL": evaluating}
    to = plan(v, x.device, together=(0 if evaluating else COOPERATIVE, x.element_size()))
    if to.way in ("resident", "looped"):
        kernel = looped.looped_backward if to.way == "looped" else resident.resident_backward
        given = {**read, "d_residual": written, "dx": dx, **settled}
        _whole(kernel, to, given, {**flags, "ACT": act})
        return found
    splits = to.cut.splits
    staging, means = None, None
    if of_affine or not evaluating:
        staging = x.new_empty((2, splits, v.channels), dtype=torch.float32)
    if not evaluating:
        means = x.new_empty((2, v.channels), dtype=torch.float32)
    if to.way == "cooperative":
        given = {**read, "d_residual": written, "dx": dx, **settled}
        given |= {"staging": staging, "means": means}
        fixed = {"RENORM": flags["RENORM"], "ACT": act}
        _together(cooperative.cooperative_backward, to, x, given, fixed)
        return found
    first = {"d_residual": written, "dx": dx if evaluating else None, "staging": staging}
    _pass(streaming.backward_stats, to, {**read, **first, "SPLITS": splits}, {"ACT": act})
    if staging is not None:
        sums = {"staging": staging, "saved": saved, "means": means, **settled}
        _per_channel(streaming.backward_settle, v, to.cut, sums, flags)
    if means is not None:
        if written is not None:  # dz has been written: nothing has to be computed again
            act, read = IDENTITY, {**read, "g": written, "residual": None, "bits": None}
        _pass(streaming.backward_apply, to, {**read, "means": means, "dx": dx}, {"ACT": act})
    return found


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


def _pass(
    kernel: Any, to: Plan, arguments: Mapping[str, Any], constants: Mapping[str, Any]
) -> None:
    """Every tile once: a program for each block of channels and split."""
    given, fixed = {**arguments, **to.arguments}, {**to.constants, **constants}
    run(Launch(kernel, (to.cut.blocks, to.cut.splits), given, fixed, to.cut.warps))


def _per_channel(
    kernel: Any, v: View, cut: Cut, arguments: Mapping[str, Any], constants: Mapping[str, Any]
) -> None:
    """Every channel once, over the results of the splits."""
    width = power_of_two(cut.splits)
    block = max(16, min(128, MERGED // width))
    given = {**arguments, "C": v.channels, "SPLITS": cut.splits}
    grid = (-(-v.channels // block),)
    warps = 8 if width * block > MERGED else 4
    run(Launch(kernel, grid, given, {**constants, "SP": width, "BLOCK": block}, warps))


def _together(
    kernel: Any, to: Plan, x: Tensor, arguments: Mapping[str, Any], constants: Mapping[str, Any]
) -> None:
    """Everything in one launch, its programs waiting for each other; interpreted, by phases."""
    cut, width = to.cut, power_of_two(to.cut.splits)
    given = {**arguments, **to.arguments, "SPLITS": cut.splits}
    given["flags"] = x.new_zeros((2, cut.blocks), dtype=torch.int32)
    least = power_of_two(-(-cut.K // cut.splits))  # narrower, and there are too few programs
    merged = min(cut.K, max(least, MERGED // width)) if to.constants["LAST"] else 1
    fixed = {**to.constants, **constants, "SP": width, "WIDTH": merged}
    grid, apart = (cut.blocks, cut.splits), interpreted() and x.device.type != "meta"
    for phase in (0, 1, 2) if apart else (-1,):
        run(Launch(kernel, grid, given, {**fixed, "PHASE": phase}, cut.warps, not apart))


def _whole(
    kernel: Any, to: Plan, arguments: Mapping[str, Any], constants: Mapping[str, Any]
) -> None:
    """Everything in one launch: a program for each block of channels."""
    given, fixed = {**arguments, **to.arguments}, {**to.constants, **constants}
    run(Launch(kernel, (to.cut.blocks,), given, fixed, to.cut.warps))
