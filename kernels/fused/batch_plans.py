"""How batch norm's kernels go over a tensor: the way, the tiles, and the launches of each way."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from normbench.kernels.fused.dispatch import interpreted
from normbench.kernels.fused.launch import Launch, power_of_two, run
from normbench.kernels.fused.tiles import (
    Cut,
    View,
    cooperative_cut,
    looped_cut,
    resident_cut,
    streaming_cut,
)

STAGES = 2
"""Tiles in flight in the loops."""

COOPERATIVE = 0
"""Programs of a multiprocessor that the cooperative way counts on: 2 always fit, 4 where a thread
has at most 128 registers. 0: it is never taken, since no GPU has run it yet."""

MERGED = 2048
"""Results of splits that a program merges at once: 16 in each thread of 4 warps."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The way that the kernels take over a view, and what they are given for it."""

    way: Literal["resident", "looped", "cooperative", "streaming"]
    cut: Cut
    arguments: Mapping[str, int]
    constants: Mapping[str, int | bool]


def training_plan(v: View, x: Tensor) -> Plan:
    """How training goes over x."""
    return plan(v, x.device, programs=COOPERATIVE, element_size=x.element_size())


@functools.lru_cache(maxsize=4096)
def plan(
    v: View,
    device: torch.device,
    streaming: bool = False,
    programs: int = 0,
    element_size: int = 0,
) -> Plan:
    """The first way that fits, or `streaming`.

    Worked out once for a view: a training step meets the same ones again and again. The cooperative
    way is among them if `programs` of a multiprocessor are given.
    """
    cut = None if streaming else resident_cut(v)
    if cut is not None:
        return Plan("resident", cut, v.sizes(), {**v.constants(), "R": cut.R, "K": cut.K})
    way: Literal["looped", "cooperative", "streaming"] = "looped"
    cut = None if streaming else looped_cut(v)
    if cut is None and programs and not streaming and torch.version.hip is None:
        way, cut = "cooperative", cooperative_cut(v, device, programs, element_size)
    if cut is None:
        way, cut = "streaming", streaming_cut(v, device)
    arguments = {**v.sizes(), "tiles": cut.tiles}
    if way != "looped":
        arguments["per_split"] = cut.per_split
    constants = {**v.constants(), "R": cut.R, "K": cut.K, "STAGES": STAGES}
    return Plan(way, cut, arguments, constants)


def over_tiles(
    kernel: Any, to: Plan, arguments: Mapping[str, Any], constants: Mapping[str, Any]
) -> None:
    """Every tile once: a program for each block of channels and split."""
    given, fixed = {**arguments, **to.arguments}, {**to.constants, **constants}
    run(Launch(kernel, (to.cut.blocks, to.cut.splits), given, fixed, to.cut.warps))


def per_channel(
    kernel: Any, channels: int, cut: Cut, arguments: Mapping[str, Any], constants: Mapping[str, Any]
) -> None:
    """Every channel once, over the results of the splits."""
    width = power_of_two(cut.splits)
    block = max(16, min(128, MERGED // width))
    given = {**arguments, "C": channels, "SPLITS": cut.splits}
    grid = (-(-channels // block),)
    warps = 8 if width * block > MERGED else 4
    run(Launch(kernel, grid, given, {**constants, "SP": width, "BLOCK": block}, warps))


def at_once(
    kernel: Any, to: Plan, arguments: Mapping[str, Any], constants: Mapping[str, Any]
) -> None:
    """Everything in one launch, its programs waiting for each other; interpreted, by phases."""
    cut, width, x = to.cut, power_of_two(to.cut.splits), arguments["x"]
    given = {**arguments, **to.arguments, "SPLITS": cut.splits}
    given["flags"] = x.new_zeros((2, cut.blocks), dtype=torch.int32)
    least = power_of_two(-(-cut.K // cut.splits))  # narrower, and there are too few programs
    merged = min(cut.K, max(least, MERGED // width)) if to.constants["LAST"] else 1
    fixed = {**to.constants, **constants, "SP": width, "WIDTH": merged}
    grid, apart = (cut.blocks, cut.splits), interpreted() and x.device.type != "meta"
    for phase in (0, 1, 2) if apart else (-1,):
        run(Launch(kernel, grid, given, {**fixed, "PHASE": phase}, cut.warps, not apart))


def whole(
    kernel: Any, to: Plan, arguments: Mapping[str, Any], constants: Mapping[str, Any]
) -> None:
    """Everything in one launch: a program for each block of channels."""
    given, fixed = {**arguments, **to.arguments}, {**to.constants, **constants}
    run(Launch(kernel, (to.cut.blocks,), given, fixed, to.cut.warps))
