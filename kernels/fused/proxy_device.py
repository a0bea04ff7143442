"""Device functions for statistics per sample and group: blocks of channels, tiles of a sample.

A tile [R, K] lies in one sample. With channels last it spans R positions and K channels, with
channels first R channels and K positions; its second axis is contiguous in memory. A block of
channels holds several whole groups (MANY), or one group, or a piece of one. Programs of the second
axis of the grid share a block: each takes all tiles of some samples, or one part of the tiles of
one sample. Offsets are 64-bit up to the tile and 32-bit inside.

Values per channel of a block are vectors; a value per group is such a vector too where a block has
many groups, else one number. MANY is the number of channels of such a group if it is a power of
two, −1 if it is not, and 0 where a block has one group.
"""

# Triton reads the annotations of jitted functions: no `from __future__ import annotations` here.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator"

import triton
import triton.language as tl

from normbench.kernels.fused.device import activate, activate_backward, affine


@triton.jit
def block_of(block, C, UNIT, PIECES, LAST: tl.constexpr, R: tl.constexpr, K: tl.constexpr):
    """Channels of a block, which of them are its own, the first, and how many it has.

    A unit is a group in `PIECES` blocks, or the whole groups of one block.
    """
    lane = tl.arange(0, K if LAST else R)
    unit, piece = block // PIECES, block % PIECES
    first = unit * UNIT + piece * lane.shape[0]
    left = UNIT - piece * lane.shape[0]
    inside = (lane < left) & (lane < C - first)
    return first + lane, inside, first, tl.minimum(lane.shape[0], left)


@triton.jit
def samples_of(program, N, PARTS, PER_PROGRAM):
    """First and last sample (exclusive) of a program, and its part of the tiles of a sample."""
    start = (program // PARTS) * PER_PROGRAM
    return start, tl.minimum(start + PER_PROGRAM, N), program % PARTS


@triton.jit
def tile_at(n, p, first, inside, C, HW, LAST: tl.constexpr, R: tl.constexpr, K: tl.constexpr):
    """Base, offsets and mask of the p-th tile of a block in sample n."""
    r = tl.arange(0, R)[:, None]
    k = tl.arange(0, K)[None, :]
    if LAST:
        base = (tl.cast(n, tl.int64) * HW + p * R) * C + first
        return base, r * C + k, (r < HW - p * R) & inside[None, :]
    else:
        base = (tl.cast(n, tl.int64) * C + first) * HW + p * K
        return base, r * HW + k, inside[:, None] & (k < HW - p * K)


@triton.jit
def positions_of(p, HW, LAST: tl.constexpr, R: tl.constexpr, K: tl.constexpr):
    """Positions in the p-th tile."""
    if LAST:
        return tl.minimum(R, HW - p * R)
    else:
        return tl.minimum(K, HW - p * K)


@triton.jit
def over_positions(values, LAST: tl.constexpr):
    """Sum per channel of a tile."""
    if LAST:
        return tl.sum(values, 0)
    else:
        return tl.sum(values, 1)


@triton.jit
def in_tile(values, LAST: tl.constexpr, VECTOR: tl.constexpr):
    """A value per channel (VECTOR), or the same for all, in a shape that meets a tile's."""
    if not VECTOR:
        return values
    elif LAST:
        return values[None, :]
    else:
        return values[:, None]


@triton.jit
def repeat(values, times: tl.constexpr):
    """Each value so many times in a row."""
    groups: tl.constexpr = values.shape[0]
    return tl.reshape(tl.broadcast_to(values[:, None], (groups, times)), (groups * times,))


@triton.jit
def of_group(sums, c, inside, CG, MANY: tl.constexpr):
    """Sum over the channels of a group in this block, for each channel of the block or for all."""
    sums = tl.where(inside, sums, 0.0)
    if MANY > 0:
        groups: tl.constexpr = sums.shape[0] // MANY
        return repeat(tl.sum(tl.reshape(sums, (groups, MANY)), 1), MANY)
    elif MANY < 0:
        same = (c // CG)[:, None] == (c // CG)[None, :]
        return tl.sum(tl.where(same, sums[None, :], 0.0), 1)
    else:
        return tl.sum(sums, 0)


@triton.jit
def group_sum(values, c, inside, CG, LAST: tl.constexpr, MANY: tl.constexpr):
    """Sum of a tile's values per group."""
    if MANY:
        return of_group(over_positions(values, LAST), c, inside, CG, MANY)
    else:
        return tl.sum(tl.sum(values, 1), 0)


@triton.jit
def load_group(values, n, G, c, first, inside, CG, MANY: tl.constexpr):
    """Value of the groups of a block in row n of G values."""
    if MANY > 0:  # fewer registers than a gather
        group = first // CG + tl.arange(0, c.shape[0] // MANY)
        return repeat(tl.load(values + n * G + group, group < G, 0.0), MANY)
    elif MANY < 0:
        return tl.load(values + n * G + c // CG, inside, 0.0)
    else:
        return tl.load(values + n * G + first // CG)


@triton.jit
def statistics_of(statistics, n, N, G, c, first, inside, CG, MANY: tl.constexpr):
    """Mean, what its float leaves over and 1/σ of the block's groups in sample n."""
    high = load_group(statistics, n, G, c, first, inside, CG, MANY)
    low = load_group(statistics, N + n, G, c, first, inside, CG, MANY)
    return high, low, load_group(statistics, 2 * N + n, G, c, first, inside, CG, MANY)


@triton.jit
def store_group(values, n, G, value, c, first, inside, CG, MANY: tl.constexpr):
    """Inverse of `load_group`: one value per group."""
    if MANY:
        tl.store(values + n * G + c // CG, value, inside & (c % CG == 0))
    else:
        tl.store(values + n * G + first // CG, value)


@triton.jit
def load_channels(values, c, inside):
    """A parameter of the block's channels in float32; zeros for None."""
    if values is not None:
        return tl.load(values + c, inside, 0.0).to(tl.float32)
    else:
        return c * 0.0


@triton.jit
def load_weight(weight, c, inside):
    """Gamma of the block's channels in float32; ones for None."""
    if weight is not None:
        return tl.load(weight + c, inside, 0.0).to(tl.float32)
    else:
        return c * 0.0 + 1.0


@triton.jit
def load_moments(moments, c, inside, C, PROXY: tl.constexpr):
    """The proxy's m and s; 0 and 1 where there is none."""
    if PROXY:
        return tl.load(moments + c, inside, 0.0), tl.load(moments + C + c, inside, 0.0)
    else:
        return c * 0.0, c * 0.0 + 1.0


@triton.jit
def proxy_output(v, high, low, scale, shift, m, s, ACT: tl.constexpr, PROXY: tl.constexpr):
    """(φ(z) − m)·s; φ(z) without a proxy."""
    phi = activate(affine(v, high, low, scale, shift), ACT)
    if PROXY:
        return (phi - m) * s
    else:
        return phi


@triton.jit
def z_gradient(g, v, high, low, scale, shift, ACT: tl.constexpr):
    """g·φ′(z) without the factor s; z is the very one of the forward."""
    return activate_backward(g, affine(v, high, low, scale, shift), ACT)


@triton.jit
def store_sums(
    sums, weight, bias, program, PROGRAMS, c, inside, C, du, duy, out_g, out_phi,
    PROXY: tl.constexpr,
):  # fmt: skip
    """A program's sums per channel, rows of `PROGRAMS` times C values: those that are asked for."""
    at = program * C + c
    if weight is not None:
        tl.store(sums + at, duy, inside)
    if bias is not None:
        tl.store(sums + PROGRAMS * C + at, du, inside)
    if PROXY:
        tl.store(sums + 2 * PROGRAMS * C + at, out_g, inside)
        tl.store(sums + 3 * PROGRAMS * C + at, out_phi, inside)
