"""How a tensor is cut where statistics belong to samples: blocks of channels, tiles, programs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from normbench.kernels.fused.launch import alignment, multiprocessors, power_of_two

PROGRAMS_PER_MULTIPROCESSOR = 4

TILE = 2048
"""Elements of a tile that is passed over."""

RESIDENT = 8192
"""Elements that one program holds at most."""

PER_THREAD = 16
"""Elements of a tile in each thread; half as many where it reads them one by one, or holds a
value per channel of several groups."""

MOST_WARPS = 16

MOST_PARTS = 256
"""Partial results of a sample's group; more would make their merge cost more than they save."""

MOST_PROGRAMS = 65535
"""Along the second axis of a grid, on CUDA devices."""

MANY_GROUPS = 32
"""Channels of a block that holds several groups; twice a group's channels must fit."""

SECTOR = 16
"""Channels of a half type that make a sector of memory."""


@dataclass(frozen=True, slots=True)
class SampleView:
    """A dense N,C,* tensor as N samples of [HW, C] (`last`) or [C, HW], in `groups` groups."""

    samples: int
    channels: int
    positions: int
    groups: int
    last: bool

    @property
    def per_group(self) -> int:
        """Channels of a group."""
        return self.channels // self.groups

    @property
    def values(self) -> int:
        """Values of a group in one sample."""
        return self.per_group * self.positions

    def runs(self) -> SampleView:
        """Every group of a sample as a sample of one channel, where it lies in one piece."""
        if self.last and self.groups > 1:
            return self
        return SampleView(self.samples * self.groups, 1, self.values, 1, False)


def sample_view(x: Tensor, groups: int) -> SampleView:
    """The view of a tensor that `tiles.dense` returned."""
    positions = x.shape[2:].numel()
    last = positions == 1 or not x.is_contiguous()
    return SampleView(x.shape[0], x.shape[1], positions, groups, last)


@dataclass(frozen=True, slots=True)
class SampleCut:
    """Blocks of channels, the tiles [R, K] of a block in a sample, and the programs of a pass.

    Attributes:
        R: rows of a tile.
        K: columns of a tile.
        unit: channels of a unit: of one group, or of the whole groups in a block.
        pieces: blocks of a unit.
        blocks: blocks of all channels.
        tiles: tiles of a block in one sample.
        parts: programs among which these are shared.
        per_part: tiles of each.
        per_program: samples of a program; 1 if there are several parts.
        warps: warps of a program.
    """

    R: int
    K: int
    unit: int
    pieces: int
    blocks: int
    tiles: int
    parts: int
    per_part: int
    per_program: int
    warps: int

    def programs(self, samples: int) -> int:
        """Programs that share a block of channels over so many samples."""
        return -(-samples // self.per_program) * self.parts

    def constants(self, v: SampleView) -> dict[str, int | bool]:
        """Layout, tile, and what divides C, HW and the unit: decides the width of loads."""
        return {
            "LAST": v.last, "R": self.R, "K": self.K, "MANY": self.many(v),
            "AC": alignment(v.channels), "AH": alignment(v.positions),
            "AU": alignment(self.unit),
        }  # fmt: skip

    def many(self, v: SampleView) -> int:
        """Channels of a group if a block has several: as they are, or −1 (proxy_device.py)."""
        if self.unit == v.per_group:
            return 0
        return v.per_group if v.per_group == alignment(v.per_group) else -1

    def sizes(self, v: SampleView) -> dict[str, int]:
        """Arguments of the kernels; C, HW and the unit without the factor in `constants`."""
        return {
            "N": v.samples, "G": v.groups, "CG": v.per_group,
            "C8": v.channels // alignment(v.channels),
            "HW8": v.positions // alignment(v.positions),
            "U8": self.unit // alignment(self.unit),
            "PER_PROGRAM": self.per_program,
        }  # fmt: skip


def streaming_cut(v: SampleView, device: torch.device, at_once: int, tile: int = TILE) -> SampleCut:
    """Tiles for passes that read everything, `at_once` samples in a launch."""
    if v.last:
        widest = max(1, min(64, max(SECTOR, power_of_two(v.channels))))
        width, unit = _channels(v, widest)
        R, K = min(tile // width, power_of_two(v.positions)), width
        tiles = -(-v.positions // R)
    else:
        K = best_width(v.positions, 32, tile if v.channels == 1 else tile // 2)
        R, unit = _channels(v, min(tile // K, power_of_two(v.channels)))
        tiles = -(-v.positions // K)
    width = K if v.last else R
    pieces = -(-unit // width)
    blocks = -(-v.channels // unit) * pieces
    cut = SampleCut(R, K, unit, pieces, blocks, tiles, 1, tiles, 1, 4)
    if (v.channels > 1 and not v.last and alignment(v.positions) < 4) or cut.many(v) < 0:
        cut = replace(cut, warps=8)  # a value per channel takes more registers there
    return _shared(cut, at_once, device)


def resident_cut(v: SampleView, device: torch.device) -> SampleCut | None:
    """The tile that holds whole groups of a sample; None where it would not fit."""
    side = power_of_two(v.positions) if v.last else max(16, power_of_two(v.positions))
    width, unit = power_of_two(v.per_group), v.per_group
    several = min(MANY_GROUPS, TILE // side)
    if v.last:
        several = max(several, min(SECTOR, power_of_two(v.channels)))
    if several >= 2 * v.per_group and v.groups > 1:
        width, unit = several, _whole_groups(v, several)
    if side * width > RESIDENT or (v.last and unit < min(SECTOR // 2, v.channels)):
        return None
    R, K = (side, width) if v.last else (width, side)
    roomy = unit == v.per_group and (v.last or alignment(v.positions) >= 4)
    warps = max(1, R * K // (32 * (PER_THREAD if roomy else PER_THREAD // 2)))
    if warps > MOST_WARPS:
        return None
    cut = SampleCut(R, K, unit, 1, -(-v.channels // unit), 1, 1, 1, 1, warps)
    # What a program adds up per channel over its samples costs registers that large tiles need.
    return _shared(cut, v.samples, device) if warps <= 2 else one_by_one(cut, v.samples)


def one_by_one(cut: SampleCut, samples: int) -> SampleCut:
    """A program for each sample, or for as few as a grid allows."""
    return replace(cut, per_program=-(-samples // MOST_PROGRAMS))


def best_width(extent: int, narrowest: int, widest: int) -> int:
    """Width of tiles over so many elements: few idle lanes, long runs of memory."""
    widths = [w for w in _powers(narrowest, widest) if w < 2 * extent] or [min(narrowest, widest)]
    return max(widths, key=lambda w: extent / (-(-extent // w) * w) * w / (w + narrowest))


def _channels(v: SampleView, widest: int) -> tuple[int, int]:
    """Channels of a tile and of a unit."""
    several = min(widest, MANY_GROUPS)
    if v.groups > 1 and 2 * v.per_group <= several:
        return several, _whole_groups(v, several)
    return best_width(v.per_group, min(16, widest), widest), v.per_group


def _whole_groups(v: SampleView, width: int) -> int:
    """Channels of the whole groups in a block: aligned if that takes no more than half of them."""
    most = min(width // v.per_group, v.groups)
    counts = [n for n in range(most, 0, -1) if 2 * n >= most and n * v.per_group % 8 == 0]
    return (counts[0] if v.last and counts else most) * v.per_group


def _powers(low: int, high: int) -> list[int]:
    return [1 << e for e in range(low.bit_length() - 1, high.bit_length())]


def _shared(cut: SampleCut, samples: int, device: torch.device) -> SampleCut:
    """Enough programs to fill the device, and not many more."""
    wanted = PROGRAMS_PER_MULTIPROCESSOR * multiprocessors(device)
    work = samples * cut.blocks
    if work >= wanted:
        return replace(cut, per_program=max(-(-work // wanted), -(-samples // MOST_PROGRAMS)))
    parts = max(1, min(cut.tiles, -(-wanted // work), MOST_PARTS // cut.pieces))
    per_part = -(-cut.tiles // parts)
    return replace(cut, parts=-(-cut.tiles // per_part), per_part=per_part)
