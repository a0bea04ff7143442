"""How a tensor is cut: its layout, the tile of a program, the splits of a pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from normbench.kernels.fused.launch import alignment, multiprocessors, power_of_two

PROGRAMS_PER_MULTIPROCESSOR = 4
MOST_SPLITS = 256
"""More would make the merge of their results cost more than it saves."""

TILE = 2048
"""Elements of a tile that is passed over: 16 in each thread of 4 warps."""

RESIDENT = 8192
"""Elements that one program holds: 32 in each thread of 8 warps."""

LOOPED = 32768
"""Elements of a block of channels that one program goes over twice: 64 KiB in half types."""

IN_CACHE = 24 << 20
"""Bytes of x up to which programs wait for each other: the L2 cache, 50 MB on an H200 and 40 on an
A100, holds them from the forward's first pass to its second. The backward reads g again as well."""


@dataclass(frozen=True, slots=True)
class View:
    """A dense N,C,* tensor as [rows, C, HW]; with channels last HW is 1 and rows N·H·W."""

    rows: int
    channels: int
    positions: int
    last: bool

    @property
    def values(self) -> int:
        """Values per channel."""
        return self.rows * self.positions

    @property
    def bytes_of_bits(self) -> int:
        """Size of a bit mask in which every row begins at a byte of its own."""
        if self.last:
            return self.rows * -(-self.channels // 8)
        return self.rows * self.channels * -(-self.positions // 8)

    def constants(self) -> dict[str, int | bool]:
        """Layout, and what divides C and HW: decides the width of loads."""
        return {
            "LAST": self.last,
            "AC": alignment(self.channels),
            "AH": alignment(self.positions),
        }

    def sizes(self) -> dict[str, int]:
        """Arguments of the kernels; C and HW come without the factor that `constants` has."""
        return {
            "rows": self.rows,
            "C8": self.channels // alignment(self.channels),
            "HW8": self.positions // alignment(self.positions),
        }


def view(x: Tensor, *others: Tensor | None) -> View:
    """The view of a tensor that `dense` returned.

    Raises:
        ValueError: if it has gaps, or one of the others has not its shape and layout.
    """
    channels, positions = x.shape[1], x.shape[2:].numel()
    last = positions == 1 or not x.is_contiguous()
    for t in (x, *others):
        if t is None:
            continue
        if t.shape != x.shape or not (is_channels_last(t) if last else t.is_contiguous()):
            raise ValueError(
                f"the kernels need tensors without gaps, of one shape and memory format: got "
                f"{tuple(t.shape)} with strides {t.stride()} beside {tuple(x.shape)} with "
                f"{x.stride()}"
            )
    if last:
        return View(x.shape[0] * positions, channels, 1, True)
    return View(x.shape[0], channels, positions, False)


def is_channels_last(x: Tensor) -> bool:
    """Whether the channels of an N,C,* tensor are its innermost dimension, without gaps."""
    return x.movedim(1, -1).is_contiguous()


def dense(x: Tensor, like: Tensor | None = None) -> Tensor:
    """The tensor without gaps, in the layout of `like` (default: its own, if it has one)."""
    like = x if like is None else like
    if like.is_contiguous() or like.stride(1) != 1:
        return x.contiguous()
    return x if is_channels_last(x) else x.movedim(1, -1).contiguous().movedim(-1, 1)


@dataclass(frozen=True, slots=True)
class Cut:
    """Tile [R, K], blocks of channels, tiles of a block, and the splits of a pass over them."""

    R: int
    K: int
    blocks: int
    tiles: int
    per_split: int
    warps: int

    @property
    def splits(self) -> int:
        """Programs that share a block of channels; none is without a tile."""
        return -(-self.tiles // self.per_split)


def _grid(v: View, tile: int, width: int) -> tuple[int, int, int, int]:
    """R, K, blocks and tiles for tiles of so many elements, `width` channels wide."""
    if v.last:
        K = min(width, max(16, power_of_two(v.channels)))
        R = min(tile // K, max(8, power_of_two(v.rows)))
        return R, K, -(-v.channels // K), -(-v.rows // R)
    K = _columns(v.positions)
    R = min(tile // K, power_of_two(v.rows), _rows_below(2**31, v.channels * v.positions))
    return R, K, v.channels, -(-v.rows // R) * -(-v.positions // K)


def streaming_cut(v: View, device: torch.device) -> Cut:
    """Tiles for passes that many programs share."""
    R, K, blocks, tiles = _grid(v, TILE, 32 if v.channels <= 128 else 64)
    wanted = -(-PROGRAMS_PER_MULTIPROCESSOR * multiprocessors(device) // blocks)
    splits = max(1, min(wanted, MOST_SPLITS, tiles))
    return Cut(R, K, blocks, tiles, -(-tiles // splits), 4)


def cooperative_cut(v: View, device: torch.device, programs: int, element_size: int) -> Cut | None:
    """Tiles as of `streaming_cut`, for so many programs of a multiprocessor and no more.

    None where x would leave the cache before it is read again, where a block of channels has no
    second program, and where rows of odd length would be read one value at a time: the
    addresses of two passes are more than the registers hold.
    """
    if v.values * v.channels * element_size > IN_CACHE or (v.last and v.channels % 2):
        return None
    R, K, blocks, tiles = _grid(v, TILE, 32 if v.channels <= 128 else 64)
    splits = min(programs * multiprocessors(device) // blocks, MOST_SPLITS, tiles)
    return Cut(R, K, blocks, tiles, -(-tiles // splits), 4) if splits > 1 else None


def looped_cut(v: View) -> Cut | None:
    """Tiles that one program goes over; None where they are too many for it."""
    width = 16  # as in `resident_cut`
    if v.values * (width if v.last else 1) > LOOPED:
        return None
    R, K, blocks, tiles = _grid(v, TILE, width)
    return Cut(R, K, blocks, tiles, tiles, 8)


def resident_cut(v: View) -> Cut | None:
    """The tile that holds all values of a block of channels; None where none can."""
    R = max(1, power_of_two(v.rows))
    if v.last:
        K = 16  # a sector of 32 bytes in half types; the narrower, the more programs
        blocks = -(-v.channels // K)
    else:
        K = max(16, power_of_two(v.positions))
        blocks = v.channels
        if R * v.channels * v.positions >= 2**31:
            return None
    if R * K > RESIDENT:
        return None
    warps = 8 if R * K > 4096 else 4 if R * K > 1024 else 2 if R * K > 256 else 1
    return Cut(R, K, blocks, 1, 1, warps)


def _columns(positions: int) -> int:
    """Width of a tile over one channel's positions: few idle lanes, long runs of memory."""
    widths = [width for width in (1024, 512, 256, 128, 64, 32) if width < 2 * positions] or [16]
    return max(widths, key=lambda w: positions / (-(-positions // w) * w) * w / (w + 64))


def _rows_below(limit: int, pitch: int) -> int:
    rows = 1
    while rows < 4096 and 2 * rows * pitch < limit:
        rows *= 2
    return rows
