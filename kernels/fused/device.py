"""Device functions that all kernels share: tiles of both layouts, activations, bit masks.

A tile is [BLOCK_R, BLOCK_K], its second axis contiguous in memory. With channels last the tensor is
[rows, C]: a tile spans rows and channels. With channels first it is [rows, C, HW]: a tile spans
rows (samples) and positions of one channel. Offsets are 64-bit up to the tile and 32-bit inside.
"""

# Triton reads the annotations of jitted functions: no `from __future__ import annotations` here.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator"

import triton
import triton.language as tl


@triton.jit
def place(tile, block, rows, C, HW, LAST: tl.constexpr, R: tl.constexpr, K: tl.constexpr):
    """Base, offsets and mask of a tile; `block` is a block of channels, or one channel."""
    r = tl.arange(0, R)[:, None]
    k = tl.arange(0, K)[None, :]
    if LAST:
        base = tl.cast(tile, tl.int64) * R * C + block * K
        mask = (r < rows - tile * R) & (k < C - block * K)
        return base, r * C + k, mask
    else:
        columns = tl.cdiv(HW, K)
        row, column = (tile // columns) * R, (tile % columns) * K
        base = (tl.cast(row, tl.int64) * C + block) * HW + column
        mask = (r < rows - row) & (k < HW - column)
        return base, r * C * HW + k, mask


@triton.jit
def count_of(tile, rows, HW, LAST: tl.constexpr, R: tl.constexpr, K: tl.constexpr):
    """How many values of each channel are in a tile."""
    if LAST:
        return tl.minimum(R, rows - tile * R)
    else:
        columns = tl.cdiv(HW, K)
        row, column = (tile // columns) * R, (tile % columns) * K
        return tl.minimum(R, rows - row) * tl.minimum(K, HW - column)


@triton.jit
def channels_of(block, LAST: tl.constexpr, K: tl.constexpr):
    """The channels of a tile: a row of K of them, or the one."""
    if LAST:
        return block * K + tl.arange(0, K)
    else:
        return block


@triton.jit
def over_rows(values, LAST: tl.constexpr):
    """Sum per channel: a row of K sums, or one number."""
    if LAST:
        return tl.sum(values, 0)
    else:
        return tl.sum(tl.sum(values, 1), 0)


@triton.jit
def spread(values, LAST: tl.constexpr):
    """A value per channel in a shape that meets a tile's."""
    if LAST:
        return values[None, :]
    else:
        return values


@triton.jit
def affine(v, high, low, scale, shift):
    """scale·(v − mean) + shift, the mean in two floats.

    One expression, its rounding spelled out: the backward finds the very z of the forward.
    """
    return tl.fma((v - high) - low, scale, shift)


@triton.jit
def sigmoids(z):
    """1/(1 + e^−z) and what it lacks of 1, neither lost in rounding nor by overflow."""
    e = tl.exp(-tl.abs(z))
    whole = 1.0 / (1.0 + e)
    part = e * whole
    return tl.where(z > 0.0, whole, part), tl.where(z > 0.0, part, whole)


@triton.jit
def activate(z, ACT: tl.constexpr):
    """φ(z) in float32; NaN stays NaN."""
    if ACT == 1:
        return tl.where(z <= 0.0, 0.0, z)
    elif ACT == 2:
        s, _ = sigmoids(z)
        return z * s
    elif ACT == 3:
        return 0.5 * z * (1.0 + tl.erf(z * 0.7071067811865476))
    elif ACT == 4:
        s, _ = sigmoids(1.5957691216057308 * (z + 0.044715 * z * z * z))
        return z * s
    elif ACT == 5:
        return z * tl.minimum(tl.maximum(z + 3.0, 0.0), 6.0) * (1.0 / 6.0)
    else:
        return z


@triton.jit
def activate_backward(g, z, ACT: tl.constexpr):
    """g·φ′(z) in float32; at the kinks as torch has it."""
    if ACT == 1:
        return tl.where(z <= 0.0, 0.0, g)
    elif ACT == 2:
        s, rest = sigmoids(z)
        return g * s * (1.0 + z * rest)
    elif ACT == 3:
        cdf = 0.5 * (1.0 + tl.erf(z * 0.7071067811865476))
        return g * (cdf + z * 0.3989422804014327 * tl.exp(-0.5 * z * z))
    elif ACT == 4:
        s, rest = sigmoids(1.5957691216057308 * (z + 0.044715 * z * z * z))
        inner = 1.5957691216057308 * (1.0 + 0.134145 * z * z)
        return g * s * (1.0 + z * rest * inner)
    elif ACT == 5:
        ramp = g * (z * (1.0 / 3.0) + 0.5)
        return tl.where(z <= -3.0, 0.0, tl.where(z >= 3.0, g, ramp))
    else:
        return g


@triton.jit
def place_bits(tile, block, rows, C, HW, LAST: tl.constexpr, R: tl.constexpr, K: tl.constexpr):
    """As `place`, for the mask's bytes: every row of the tensor begins at a byte of its own."""
    r = tl.arange(0, R)[:, None]
    k = tl.arange(0, K // 8)[None, :]
    if LAST:
        width = tl.cdiv(C, 8)
        base = tl.cast(tile, tl.int64) * R * width + block * (K // 8)
        mask = (r < rows - tile * R) & (k < width - block * (K // 8))
        return base, r * width + k, mask
    else:
        width, columns = tl.cdiv(HW, 8), tl.cdiv(HW, K)
        row, column = (tile // columns) * R, (tile % columns) * (K // 8)
        base = (tl.cast(row, tl.int64) * C + block) * width + column
        mask = (r < rows - row) & (k < width - column)
        return base, r * C * width + k, mask


@triton.jit
def pack(positive, R: tl.constexpr, K: tl.constexpr):
    """Truth values of a tile as bytes, the first of eight in the lowest bit."""
    bits = tl.reshape(positive.to(tl.int32), (R, K // 8, 8))
    return tl.sum(bits << tl.arange(0, 8)[None, None, :], 2).to(tl.uint8)


@triton.jit
def unpack(packed, R: tl.constexpr, K: tl.constexpr):
    """Inverse of `pack`, as 0 and 1."""
    bits = (packed.to(tl.int32)[:, :, None] >> tl.arange(0, 8)[None, None, :]) & 1
    return tl.reshape(bits, (R, K))
