"""The launches of Proxy Normalization: which kernels, with which tiles.

Statistics belong to samples: where x is larger than the L2 cache, the passes can go through the
batch in chunks that fit, so that the second reads find their values there (`chunked`, off unless
asked: it takes more launches). The cut into programs is that of one chunk either way, and every
program knows its number in the whole: the results are the same, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from normbench.kernels.fused import proxy_resident, proxy_streaming, proxy_table
from normbench.kernels.fused.activations import RELU
from normbench.kernels.fused.launch import Launch, power_of_two, run
from normbench.kernels.fused.proxy_cuts import (
    TILE,
    SampleCut,
    SampleView,
    resident_cut,
    sample_view,
    streaming_cut,
)

import os
STAGES = int(os.environ.get("ST","2"))
"""Tiles in flight in the loops."""

CHUNK = 24 * 2**20
"""Bytes of x in a chunk: less than half of an H200's L2 cache, the output's lines beside it."""

TABLE = 4096
"""Elements of a block of nodes × channels."""


class Learned(NamedTuple):
    """The parameters, C values each; without a proxy the weight alone."""

    weight: Tensor
    bias: Tensor | None
    proxy_weight: Tensor | None
    proxy_bias: Tensor | None

    def arguments(self) -> dict[str, Tensor | None]:
        """By name, as the kernels take them."""
        return self._asdict()


@dataclass(frozen=True, slots=True)
class Settings:
    """What is fixed for a layer.

    Attributes:
        act: code of the activation.
        groups: groups of the norm.
        eps: added to the norm's variance.
        proxy_eps: added to the proxy's variance.
        exact: closed form or Gauss-Hermite rule in place of 200 quantiles.
        chunked: a launch goes through `CHUNK` bytes of x, not through all.
    """

    act: int
    groups: int
    eps: float
    proxy_eps: float
    exact: bool
    chunked: bool = False

    def constants(self, learned: Learned) -> dict[str, int | bool]:
        """Activation, and whether there is a proxy."""
        return {"ACT": self.act, "PROXY": learned.bias is not None}

    @property
    def rule(self) -> tuple[int, int]:
        """How the proxy's moments are computed (proxy_table.py), and the nodes it takes."""
        if not self.exact:
            return 0, 256
        return (2, 1) if self.act == RELU else (1, 32)


def forward(x: Tensor, learned: Learned, to: Settings) -> tuple[Tensor, Tensor, Tensor]:
    """Of a dense x: y; the statistics' rows of N·G values; the moments' rows of C values."""
    v = sample_view(x, to.groups)
    y, statistics, moments = outputs(x, to.groups)
    of_x: dict[str, Any] = {"x": x, "y": y, "statistics": statistics, "moments": moments}
    affine = {"weight": learned.weight, "bias": learned.bias}
    flags = to.constants(learned)
    if (cut := resident_cut(v, x.device)) is not None:
        if learned.bias is not None:
            _settle(v, None, slice(0, 0), 1, statistics, moments, learned, to)
        given = {**of_x, **affine, **cut.sizes(v), "values": float(v.values), "eps": to.eps}
        _run(proxy_resident.forward, v, cut, v.samples, given, flags | {"LOOP": cut.per_program > 1})
        return y, statistics, moments
    runs, many = v.runs(), _samples_at_once(x)
    each = runs.samples // v.samples
    first = replace(streaming_cut(runs, x.device, many * each), per_program=1)
    cut = streaming_cut(v, x.device, many)
    parts = first.parts * first.pieces
    staging = x.new_empty((4, parts, v.samples * v.groups), dtype=torch.float32)
    for chunk in _chunks(v, many, to, cut):
        wide = slice(chunk.start * each, chunk.stop * each)
        _pass(proxy_streaming.stats, runs, first, wide, {"x": x, "staging": staging}, {})
        _settle(v, staging, chunk, parts, statistics, moments, learned, to)
        _pass(proxy_streaming.apply, v, cut, chunk, {**of_x, **affine}, flags)
    return y, statistics, moments


def outputs(x: Tensor, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Unwritten tensors for what `forward` returns."""
    statistics = x.new_empty((3, x.shape[0] * groups), dtype=torch.float32)
    return torch.empty_like(x), statistics, x.new_empty((2, x.shape[1]), dtype=torch.float32)


def backward(
    g: Tensor, x: Tensor, statistics: Tensor, moments: Tensor, learned: Learned, to: Settings
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x and the four parameters, empty where there is none; g has x's layout."""
    v = sample_view(x, to.groups)
    dx, *written = gradients(x, learned)
    read: dict[str, Any] = {
        "g": g, "x": x, "statistics": statistics, "moments": moments,
        "weight": learned.weight, "bias": learned.bias,
    }  # fmt: skip
    flags = to.constants(learned)
    if (cut := resident_cut(v, x.device)) is not None:
        programs = cut.programs(v.samples)
        sums = x.new_empty((4, programs, v.channels), dtype=torch.float32)
        given = {**read, "dx": dx, "sums": sums, **cut.sizes(v), "PROGRAMS": programs}
        given["values"] = float(v.values)
        _run(proxy_resident.backward, v, cut, v.samples, given, flags | {"LOOP": cut.per_program > 1})
        _backward_settle(v, None, None, sums, moments, slice(0, 0), 1, learned, to, written)
        return dx, written[0], written[1], written[2], written[3]
    many = _samples_at_once(x)
    first = streaming_cut(v, x.device, many, TILE // 2)
    cut = streaming_cut(v, x.device, many)
    parts, programs = first.parts * first.pieces, first.programs(v.samples)
    groups = x.new_empty((2, parts, v.samples * v.groups), dtype=torch.float32)
    sums = x.new_empty((4, programs, v.channels), dtype=torch.float32)
    means = x.new_empty((2, v.samples * v.groups), dtype=torch.float32)
    for chunk in _chunks(v, many, to, first, cut):
        given = {**read, "groups": groups, "sums": sums, "PROGRAMS": programs}
        _pass(proxy_streaming.backward_stats, v, first, chunk, given, flags)
        _backward_settle(v, groups, means, sums, moments, chunk, parts, learned, to, written)
        _pass(proxy_streaming.backward_apply, v, cut, chunk, {**read, "means": means, "dx": dx}, flags)
    return dx, written[0], written[1], written[2], written[3]


def gradients(x: Tensor, learned: Learned) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Unwritten tensors for what `backward` returns."""
    of = [x.new_empty(0) if p is None else torch.empty_like(p) for p in learned]
    return torch.empty_like(x), of[0], of[1], of[2], of[3]


def _samples_at_once(x: Tensor) -> int:
    """Samples of a chunk."""
    return max(1, min(x.shape[0], CHUNK * x.shape[0] // (x.numel() * x.element_size())))


def _chunks(v: SampleView, many: int, to: Settings, *cuts: SampleCut) -> Iterator[slice]:
    """Samples of each round of launches; no program has samples of two."""
    together = math.lcm(*(cut.per_program for cut in cuts))
    step = -(-many // together) * together if to.chunked else v.samples
    for start in range(0, v.samples, step):
        yield slice(start, min(start + step, v.samples))


def _run(
    kernel: Any,
    v: SampleView,
    cut: SampleCut,
    samples: int,
    arguments: Mapping[str, Any],
    constants: Mapping[str, Any],
) -> None:
    fixed = {**cut.constants(v), **constants}
    run(Launch(kernel, (cut.blocks, cut.programs(samples)), arguments, fixed, cut.warps))


def _pass(
    kernel: Any,
    v: SampleView,
    cut: SampleCut,
    chunk: slice,
    arguments: Mapping[str, Any],
    constants: Mapping[str, Any],
) -> None:
    """Every tile of some samples once."""
    given = {
        **arguments, **cut.sizes(v), "PIECES": cut.pieces, "TILES": cut.tiles,
        "PARTS": cut.parts, "PER_PART": cut.per_part, "skip": cut.programs(chunk.start),
    }  # fmt: skip
    _run(kernel, v, cut, chunk.stop - chunk.start, given, {**constants, "STAGES": STAGES})


def _settle(
    v: SampleView,
    staging: Tensor | None,
    chunk: slice,
    parts: int,
    statistics: Tensor,
    moments: Tensor,
    learned: Learned,
    to: Settings,
) -> None:
    """Statistics of the samples in `chunk`; with its first, the proxy's moments."""
    given = {
        "staging": staging, "statistics": statistics, "moments": moments,
        **learned.arguments(), "eps": to.eps, "proxy_eps": to.proxy_eps,
    }  # fmt: skip
    _small(proxy_table.settle, v, chunk, parts, chunk.start == 0, given, learned, to)


def _backward_settle(
    v: SampleView,
    groups: Tensor | None,
    means: Tensor | None,
    sums: Tensor,
    moments: Tensor,
    chunk: slice,
    parts: int,
    learned: Learned,
    to: Settings,
    written: list[Tensor],
) -> None:
    """Means of the samples in `chunk`; with its last, the gradients of the parameters."""
    names = ("d_weight", "d_bias", "d_proxy_weight", "d_proxy_bias")
    given: dict[str, Any] = {
        "groups": groups, "means": means, "sums": sums, "moments": moments,
        **learned.arguments(), **dict(zip(names, written, strict=True)),
        "PROGRAMS": sums.shape[1], "values": float(v.values),
    }  # fmt: skip
    last = groups is None or chunk.stop == v.samples
    _small(proxy_table.backward_settle, v, chunk, parts, last, given, learned, to)


def _small(
    kernel: Any,
    v: SampleView,
    chunk: slice,
    parts: int,
    channels: bool,
    arguments: Mapping[str, Any],
    learned: Learned,
    to: Settings,
) -> None:
    """Programs that merge the chunk's statistics, and programs of the channels where asked."""
    rule, nodes = to.rule
    width = power_of_two(parts)
    column_block, channel_block = max(1, min(128, 2048 // width)), min(128, TABLE // nodes)
    first, stop = chunk.start * v.groups, chunk.stop * v.groups
    mergers = -(-(stop - first) // column_block)
    given = {
        **arguments, "C": v.channels, "COLUMNS": v.samples * v.groups, "PARTS": parts,
        "FIRST": first, "STOP": stop, "MERGERS": mergers,
    }  # fmt: skip
    fixed = {
        **to.constants(learned), "RULE": rule, "SP": width,
        "COLUMN_BLOCK": column_block, "CHANNEL_BLOCK": channel_block,
    }  # fmt: skip
    if kernel is proxy_table.backward_settle:
        fixed["ROWS"] = TABLE // channel_block
    else:
        channels = channels and learned.bias is not None
    grid = mergers + (-(-v.channels // channel_block) if channels else 0)
    run(Launch(kernel, (grid,), given, fixed, 8))
