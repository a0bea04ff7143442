"""The launches of batch norm and Batch Renorm: which kernels, with which tiles."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from normbench.kernels.fused import looped, resident, streaming
from normbench.kernels.fused.activations import IDENTITY, RELU
from normbench.kernels.fused.launch import Launch, power_of_two, run
from normbench.kernels.fused.tiles import Cut, View, looped_cut, resident_cut, streaming_cut, view

STAGES = 2
"""Tiles in flight in the loops."""


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
    renorm: Renorm | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Training forward of a dense x: y, the rows of `saved` (channel_math.py), the mask of bits."""
    v = view(x, residual)
    y, saved, bits = outputs(x, act, residual is not None and keep_bits, renorm is not None)
    masked = bits if bits.numel() else None
    settled: dict[str, Any] = {
        "saved": saved, "weight": weight, "bias": bias,
        "running_mean": running_mean, "running_var": running_var,
        **_of_renorm(renorm),
        "eps": eps, "momentum": momentum, "unbias": v.values / (v.values - 1),
    }  # fmt: skip
    io: dict[str, Any] = {"x": x, "y": y, "residual": residual, "bits": masked}
    flag = {"RENORM": renorm is not None}
    whole = {**io, **settled, "values": float(v.values)}
    if (cut := resident_cut(v)) is not None:
        _whole(resident.resident_forward, v, cut, whole, flag | {"ACT": act})
        return y, saved, bits
    if (cut := looped_cut(v)) is not None:
        _whole(looped.looped_forward, v, cut, whole, flag | {"ACT": act})
        return y, saved, bits
    cut = streaming_cut(v, x.device)
    staging = x.new_empty((4, cut.splits, v.channels), dtype=torch.float32)
    _pass(streaming.stats, v, cut, {"x": x, "staging": staging, "SPLITS": cut.splits}, {})
    _per_channel(streaming.settle, v, cut, {"staging": staging, **settled}, flag)
    unused = dict.fromkeys(("weight", "bias", "running_mean", "running_var"))
    _pass(streaming.apply, v, cut, {**io, "saved": saved, **unused, "eps": eps}, {"ACT": act})
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
) -> Tensor:
    """Evaluation forward of a dense x, by the running values: one launch."""
    v = view(x, residual)
    y = torch.empty_like(x)
    if not x.numel():
        return y
    cut = streaming_cut(v, x.device)
    arguments = {
        "x": x, "y": y, "saved": None, "residual": residual, "bits": None,
        "weight": weight, "bias": bias, "running_mean": running_mean,
        "running_var": running_var, "eps": eps,
    }  # fmt: skip
    _pass(streaming.apply, v, cut, arguments, {"ACT": act})
    return y


def backward(
    g: Tensor,
    x: Tensor,
    saved: Tensor,
    residual: Tensor | None,
    bits: Tensor,
    act: int,
    with_residual: bool,
    evaluating: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, gamma and beta (in float32) and of the residual.

    g and the residual have x's layout. The last is empty without a residual, and where no
    activation follows: it is g itself then.
    """
    v = view(x, g, residual)
    dx, d_weight, d_bias, d_residual = gradients(x, act, with_residual)
    if not x.numel():
        return dx, d_weight.zero_(), d_bias.zero_(), d_residual
    settled = {"d_weight": d_weight, "d_bias": d_bias, "values": float(v.values)}
    written = d_residual if d_residual.numel() else None
    read: dict[str, Any] = {
        "g": g, "x": x, "saved": saved,
        "residual": residual, "bits": bits if bits.numel() else None,
    }  # fmt: skip
    flags = {"RENORM": saved.shape[0] == 7, "EVAL": evaluating}
    whole = {**read, "d_residual": written, "dx": dx, **settled}
    if (cut := resident_cut(v)) is not None:
        _whole(resident.resident_backward, v, cut, whole, flags | {"ACT": act})
        return dx, d_weight, d_bias, d_residual
    if (cut := looped_cut(v)) is not None:
        _whole(looped.looped_backward, v, cut, whole, flags | {"ACT": act})
        return dx, d_weight, d_bias, d_residual
    cut = streaming_cut(v, x.device)
    staging = x.new_empty((2, cut.splits, v.channels), dtype=torch.float32)
    means = x.new_empty((2, v.channels), dtype=torch.float32)
    arguments = {**read, "d_residual": written, "staging": staging, "SPLITS": cut.splits}
    _pass(streaming.backward_stats, v, cut, arguments, {"ACT": act})
    arguments = {"staging": staging, "saved": saved, "means": means, **settled}
    _per_channel(streaming.backward_settle, v, cut, arguments, flags)
    if written is not None:  # dz has been written: nothing has to be computed again
        act, read = IDENTITY, read | {"g": written, "residual": None, "bits": None}
    _pass(streaming.backward_apply, v, cut, {**read, "means": means, "dx": dx}, {"ACT": act})
    return dx, d_weight, d_bias, d_residual


def gradients(x: Tensor, act: int, with_residual: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Unwritten tensors for what `backward` returns."""
    written = with_residual and act != IDENTITY
    return (
        torch.empty_like(x),
        x.new_empty(x.shape[1], dtype=torch.float32),
        x.new_empty(x.shape[1], dtype=torch.float32),
        torch.empty_like(x) if written else x.new_empty(0),
    )


def _of_renorm(renorm: Renorm | None) -> dict[str, Any]:
    limits = (1.0, 0.0, 0.0, 1.0, 1.0) if renorm is None else renorm.limits
    return {
        "step": None if renorm is None else renorm.step,
        "active": None if renorm is None else renorm.active,
        "newest": None if renorm is None else renorm.newest,
        **dict(zip(("rmax", "dmax", "hold", "rfull", "dfull"), limits, strict=True)),
    }


def _pass(
    kernel: Any, v: View, cut: Cut, arguments: Mapping[str, Any], constants: Mapping[str, Any]
) -> None:
    """Every tile once: a program for each block of channels and split."""
    given = {**arguments, **v.sizes(), "tiles": cut.tiles, "per_split": cut.per_split}
    fixed = {**v.constants(), "R": cut.R, "K": cut.K, "STAGES": STAGES, **constants}
    run(Launch(kernel, (cut.blocks, cut.splits), given, fixed, cut.warps))


def _per_channel(
    kernel: Any, v: View, cut: Cut, arguments: Mapping[str, Any], constants: Mapping[str, Any]
) -> None:
    """Every channel once, over the results of the splits."""
    width = power_of_two(cut.splits)
    block = max(16, min(128, 2048 // width))
    given = {**arguments, "C": v.channels, "SPLITS": cut.splits}
    grid = (-(-v.channels // block),)
    warps = 8 if width * block > 2048 else 4
    run(Launch(kernel, grid, given, {**constants, "SP": width, "BLOCK": block}, warps))


def _whole(
    kernel: Any, v: View, cut: Cut, arguments: Mapping[str, Any], constants: Mapping[str, Any]
) -> None:
    """Everything in one launch: a program for each block of channels."""
    given, fixed = {**arguments, **v.sizes()}, {**v.constants(), "R": cut.R, "K": cut.K}
    if cut.tiles > 1:
        given["tiles"], fixed["STAGES"] = cut.tiles, STAGES
    run(Launch(kernel, (cut.blocks,), given, {**fixed, **constants}, cut.warps))
