"""The launches of Proxy Normalization and of group norm: which kernels, with which tiles.

Group norm is Proxy Normalization without a proxy: φ(gamma·y + beta), each of the two or none given.
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
from normbench.kernels.fused.activations import IDENTITY, RELU
from normbench.kernels.fused.launch import Launch, power_of_two, run
from normbench.kernels.fused.proxy_cuts import (
    TILE,
    SampleCut,
    SampleView,
    one_by_one,
    resident_cut,
    sample_view,
    streaming_cut,
)

STAGES = 2
"""Tiles in flight in the loops."""

CHUNK = 24 * 2**20
"""Bytes of x in a chunk: less than half of an H200's L2 cache, the output's lines beside it."""

TABLE = 4096
"""Elements of a block of nodes × channels, and of programs × channels."""


class Learned(NamedTuple):
    """The parameters, C values each; with a proxy all four, without one any of the first two."""

    weight: Tensor | None
    bias: Tensor | None
    proxy_weight: Tensor | None
    proxy_bias: Tensor | None

    @property
    def has_proxy(self) -> bool:
        """Whether φ is normalized by its moments."""
        return self.proxy_weight is not None

    @property
    def empty(self) -> bool:
        """Whether there is none."""
        return all(p is None for p in self)


@dataclass(frozen=True, slots=True)
class Settings:
    """What is fixed for a layer.

    Attributes:
        act: code of the activation.
        groups: groups of the norm.
        eps: added to the norm's variance.
        proxy_eps: added to the proxy's variance.
        exact: closed form or Gauss-Hermite rule in place of 200 quantiles.
        chunked: a round of launches goes through `CHUNK` bytes of x, not through all.
    """

    act: int
    groups: int
    eps: float
    proxy_eps: float
    exact: bool
    chunked: bool = False

    def rule(self) -> tuple[int, int]:
        """How the proxy's moments are computed (proxy_table.py), and over how many rows."""
        if not self.exact:
            return 0, 256
        return (2, 1) if self.act == RELU else (1, 32)


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer and the input it meets."""

    x: Tensor
    learned: Learned
    to: Settings
    v: SampleView
    statistics: Tensor
    moments: Tensor

    def of_x(self, **more: Any) -> dict[str, Any]:
        """Arguments of the kernels that go over x."""
        return {
            "x": self.x, "statistics": self.statistics, "moments": self.moments,
            "weight": self.learned.weight, "bias": self.learned.bias, **more,
        }  # fmt: skip

    @property
    def flags(self) -> dict[str, int | bool]:
        return {"ACT": self.to.act, "PROXY": self.learned.has_proxy}

    @property
    def flags_of_channels(self) -> dict[str, int | bool]:
        """Of the small kernels: without a proxy the activation is nothing to them."""
        act = self.to.act if self.learned.has_proxy else IDENTITY
        return {"ACT": act, "PROXY": self.learned.has_proxy}

    @property
    def at_once(self) -> int:
        """Samples of a chunk."""
        size = self.x.numel() * self.x.element_size()
        return max(1, min(self.v.samples, CHUNK * self.v.samples // size))

    def chunks(self, *cuts: SampleCut) -> Iterator[slice]:
        """Samples of each round of launches; no program has samples of two."""
        together = math.lcm(*(cut.per_program for cut in cuts))
        step = -(-self.at_once // together) * together if self.to.chunked else self.v.samples
        for start in range(0, self.v.samples, step):
            yield slice(start, min(start + step, self.v.samples))


def forward(x: Tensor, learned: Learned, to: Settings) -> tuple[Tensor, Tensor, Tensor]:
    """Of a dense x: y; rows of N·G statistics; rows of C moments, empty without a proxy."""
    v = sample_view(x, to.groups)
    y = torch.empty_like(x)
    statistics = x.new_empty((3, v.samples * v.groups), dtype=torch.float32)
    of_proxy = v.channels if learned.has_proxy else 0
    moments = x.new_empty((2, of_proxy), dtype=torch.float32)
    layer = _Layer(x, learned, to, v, statistics, moments)
    settle: dict[str, Any] = {
        "statistics": statistics, "moments": moments, **learned._asdict(),
        "eps": to.eps, "proxy_eps": to.proxy_eps,
    }  # fmt: skip
    if (cut := resident_cut(v, x.device)) is not None:
        if learned.has_proxy:
            _small(proxy_table.settle, layer, 1, slice(0, 0), True, {**settle, "staging": None})
        given = layer.of_x(y=y, values=float(v.values), eps=to.eps)
        _whole(proxy_resident.resident_forward, layer, cut, given)
    else:
        _stream_forward(layer, y, settle)
    return y, statistics, moments


def _stream_forward(layer: _Layer, y: Tensor, settle: Mapping[str, Any]) -> None:
    x, v = layer.x, layer.v
    runs = v.runs()
    each = runs.samples // v.samples
    first = streaming_cut(runs, x.device, layer.at_once * each)
    if first.parts == 1:
        first = one_by_one(first, runs.samples)
    cut = streaming_cut(v, x.device, layer.at_once)
    parts = first.parts * first.pieces
    staging = x.new_empty((4, parts, v.samples * v.groups), dtype=torch.float32)
    for chunk in layer.chunks(first, cut):
        wide = slice(chunk.start * each, chunk.stop * each)
        _pass(proxy_streaming.stats, runs, first, wide, {"x": x, "staging": staging}, {})
        channels = chunk.start == 0 and layer.learned.has_proxy
        given = {**settle, "staging": staging}
        _small(proxy_table.settle, layer, parts, chunk, channels, given)
        _pass(proxy_streaming.apply, v, cut, chunk, layer.of_x(y=y), layer.flags)


def backward(
    g: Tensor, x: Tensor, statistics: Tensor, moments: Tensor, learned: Learned, to: Settings
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x and the four parameters, empty where there is none; g has x's layout."""
    layer = _Layer(x, learned, to, sample_view(x, to.groups), statistics, moments)
    dx = torch.empty_like(x)
    of = [x.new_empty(0) if p is None else torch.empty_like(p) for p in learned]
    settle: dict[str, Any] = {
        "moments": moments, **learned._asdict(), "values": float(layer.v.values),
        "d_weight": of[0], "d_bias": of[1], "d_proxy_weight": of[2], "d_proxy_bias": of[3],
    }  # fmt: skip
    if (cut := resident_cut(layer.v, x.device)) is not None:
        given = _sums(layer, cut)
        settle |= {**given, "groups": None, "means": None}
        given |= layer.of_x(g=g, dx=dx, values=float(layer.v.values))
        _whole(proxy_resident.resident_backward, layer, cut, given)
        if not learned.empty:
            _small(proxy_table.backward_settle, layer, 1, slice(0, 0), True, settle)
    else:
        _stream_backward(layer, g, dx, settle)
    return dx, of[0], of[1], of[2], of[3]


def _stream_backward(layer: _Layer, g: Tensor, dx: Tensor, settle: Mapping[str, Any]) -> None:
    x, v = layer.x, layer.v
    first = streaming_cut(v, x.device, layer.at_once, TILE // 2)  # it keeps four sums of a tile
    cut = streaming_cut(v, x.device, layer.at_once)
    if first.parts == cut.parts == 1:  # a chunk is of whole programs of both
        first = replace(first, per_program=cut.per_program)
    parts = first.parts * first.pieces
    groups = x.new_empty((2, parts, v.samples * v.groups), dtype=torch.float32)
    means = x.new_empty((2, v.samples * v.groups), dtype=torch.float32)
    sums = _sums(layer, first)
    for chunk in layer.chunks(first, cut):
        given = layer.of_x(g=g, groups=groups, **sums)
        _pass(proxy_streaming.backward_stats, v, first, chunk, given, layer.flags)
        given = {**settle, **sums, "groups": groups, "means": means}
        last = chunk.stop == v.samples and not layer.learned.empty
        _small(proxy_table.backward_settle, layer, parts, chunk, last, given)
        given = layer.of_x(g=g, means=means, dx=dx)
        _pass(proxy_streaming.backward_apply, v, cut, chunk, given, layer.flags)


def _sums(layer: _Layer, cut: SampleCut) -> dict[str, Any]:
    """Room for the sums per channel of every program; none where no parameter needs them."""
    programs = cut.programs(layer.v.samples)
    if layer.learned.empty:
        return {"sums": None, "PROGRAMS": programs}
    rows = 4 if layer.learned.has_proxy else 2
    sums = layer.x.new_empty((rows, programs, layer.v.channels), dtype=torch.float32)
    return {"sums": sums, "PROGRAMS": programs}


def _whole(kernel: Any, layer: _Layer, cut: SampleCut, arguments: Mapping[str, Any]) -> None:
    """Every tile once, each of whole groups."""
    fixed = {**cut.constants(layer.v), **layer.flags, "LOOP": cut.per_program > 1}
    grid = (cut.blocks, cut.programs(layer.v.samples))
    run(Launch(kernel, grid, {**arguments, **cut.sizes(layer.v)}, fixed, cut.warps))


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
    fixed = {**cut.constants(v), **constants, "STAGES": STAGES}
    grid = (cut.blocks, cut.programs(chunk.stop - chunk.start))
    run(Launch(kernel, grid, given, fixed, cut.warps))


def _small(
    kernel: Any,
    layer: _Layer,
    parts: int,
    chunk: slice,
    channels: bool,
    arguments: Mapping[str, Any],
) -> None:
    """Merge the parts of the chunk's groups; with `channels`, what is per channel: one launch."""
    v, (rule, nodes) = layer.v, layer.to.rule()
    column_block = max(1, min(128, TABLE // 2 // power_of_two(parts)))
    channel_block = min(128, TABLE // nodes)
    first, stop = chunk.start * v.groups, chunk.stop * v.groups
    mergers = -(-(stop - first) // column_block)
    given = {
        **arguments, "C": v.channels, "COLUMNS": v.samples * v.groups, "PARTS": parts,
        "FIRST": first, "STOP": stop, "MERGERS": mergers,
    }  # fmt: skip
    fixed = {
        **layer.flags_of_channels, "RULE": rule, "SP": power_of_two(parts),
        "COLUMN_BLOCK": column_block, "CHANNEL_BLOCK": channel_block,
    }  # fmt: skip
    if kernel is proxy_table.backward_settle:
        fixed["ROWS"] = TABLE // channel_block
    grid = mergers + (-(-v.channels // channel_block) if channels else 0)
    run(Launch(kernel, (grid,), given, fixed, 8))
