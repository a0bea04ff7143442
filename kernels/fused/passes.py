"""Device functions that go over a range of tiles: the four passes of batch norm.

`streaming` shares the tiles of a block of channels among programs, `looped` gives them to one.
"""

# Triton reads the annotations of jitted functions: no `from __future__ import annotations` here.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator"

import triton
import triton.language as tl

from normbench.kernels.fused.device import (
    activate,
    activate_backward,
    affine,
    count_of,
    over_rows,
    pack,
    place,
    place_bits,
    spread,
    unpack,
)


@triton.jit
def moments(
    x, start, stop, block, rows, C, HW,
    LAST: tl.constexpr, R: tl.constexpr, K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Pivot, mean − pivot, Σ(x − mean)² and count of each channel in a range of tiles.

    The pivot, the mean of the first tile, is subtracted from all values: their squares lose
    nothing to a large mean.
    """
    base, offsets, mask = place(start, block, rows, C, HW, LAST, R, K)
    v = tl.load(x + base + offsets, mask, 0.0).to(tl.float32)
    count = count_of(start, rows, HW, LAST, R, K)
    pivot = over_rows(v, LAST) / count
    total = tl.where(mask, v - spread(pivot, LAST), 0.0)
    squares = total * total
    for tile in tl.range(start + 1, stop, num_stages=STAGES):
        base, offsets, mask = place(tile, block, rows, C, HW, LAST, R, K)
        v = tl.load(x + base + offsets, mask, 0.0).to(tl.float32)
        d = tl.where(mask, v - spread(pivot, LAST), 0.0)
        total += d
        squares += d * d
        count += count_of(tile, rows, HW, LAST, R, K)
    offset = over_rows(total, LAST) / count
    return pivot, offset, over_rows(squares, LAST) - offset * offset * count, count


@triton.jit
def normalize(
    x, y, residual, bits, high, low, scale, shift, start, stop, block, rows, C, HW,
    LAST: tl.constexpr, R: tl.constexpr, K: tl.constexpr, ACT: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """φ(scale·(x − mean) + shift + residual), the last tile first: it is still in the cache."""
    high, low = spread(high, LAST), spread(low, LAST)
    scale, shift = spread(scale, LAST), spread(shift, LAST)
    for i in tl.range(start, stop, num_stages=STAGES):
        tile = start + stop - 1 - i
        base, offsets, mask = place(tile, block, rows, C, HW, LAST, R, K)
        v = tl.load(x + base + offsets, mask, 0.0).to(tl.float32)
        z = affine(v, high, low, scale, shift)
        if residual is not None:
            z += tl.load(residual + base + offsets, mask, 0.0).to(tl.float32)
        if bits is not None:
            bit_base, bit_offsets, bit_mask = place_bits(tile, block, rows, C, HW, LAST, R, K)
            tl.store(bits + bit_base + bit_offsets, pack(z > 0.0, R, K), bit_mask)
        tl.store(y + base + offsets, activate(z, ACT).to(y.dtype.element_ty), mask)


@triton.jit
def z_gradient(
    g, v, residual, bits, high, low, scale, shift, base, offsets, mask,
    tile, block, rows, C, HW, LAST: tl.constexpr, R: tl.constexpr, K: tl.constexpr,
    ACT: tl.constexpr,
):  # fmt: skip
    """g·φ′(z): the sign of z from the mask of bits, or z computed again from x and residual."""
    if bits is not None:
        bit_base, bit_offsets, bit_mask = place_bits(tile, block, rows, C, HW, LAST, R, K)
        positive = unpack(tl.load(bits + bit_base + bit_offsets, bit_mask, 0), R, K)
        return tl.where(positive != 0, g, 0.0)
    else:
        z = affine(v, high, low, scale, shift)
        if residual is not None:
            z += tl.load(residual + base + offsets, mask, 0.0).to(tl.float32)
        return activate_backward(g, z, ACT)


@triton.jit
def gradient_sums(
    g, x, residual, bits, d_residual, dx, high, low, scale, shift, start, stop, block, rows, C, HW,
    LAST: tl.constexpr, R: tl.constexpr, K: tl.constexpr, ACT: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Σ dz and Σ dz·(x − mean).

    Where asked also writes dz, the residual's gradient, and scale·dz, that of x in evaluation.
    """
    high, low = spread(high, LAST), spread(low, LAST)
    scale, shift = spread(scale, LAST), spread(shift, LAST)
    sums = tl.zeros((R, K), tl.float32)
    dots = tl.zeros((R, K), tl.float32)
    for tile in tl.range(start, stop, num_stages=STAGES):
        base, offsets, mask = place(tile, block, rows, C, HW, LAST, R, K)
        v = tl.load(x + base + offsets, mask, 0.0).to(tl.float32)
        dz = tl.load(g + base + offsets, mask, 0.0).to(tl.float32)
        if ACT != 0:
            dz = z_gradient(
                dz, v, residual, bits, high, low, scale, shift, base, offsets, mask,
                tile, block, rows, C, HW, LAST, R, K, ACT,
            )  # fmt: skip
            if d_residual is not None:
                dz = dz.to(d_residual.dtype.element_ty)
                tl.store(d_residual + base + offsets, dz, mask)
                dz = dz.to(tl.float32)
        if dx is not None:
            tl.store(dx + base + offsets, (scale * dz).to(dx.dtype.element_ty), mask)
        dz = tl.where(mask, dz, 0.0)
        sums += dz
        dots += dz * ((v - high) - low)
    return over_rows(sums, LAST), over_rows(dots, LAST)


@triton.jit
def x_gradient(
    g, x, residual, bits, dx, high, low, scale, shift, mean_g, slope,
    start, stop, block, rows, C, HW,
    LAST: tl.constexpr, R: tl.constexpr, K: tl.constexpr, ACT: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """scale·(dz − mean dz − (x − mean)·slope), the last tile first."""
    high, low = spread(high, LAST), spread(low, LAST)
    scale, shift = spread(scale, LAST), spread(shift, LAST)
    mean_g, slope = spread(mean_g, LAST), spread(slope, LAST)
    for i in tl.range(start, stop, num_stages=STAGES):
        tile = start + stop - 1 - i
        base, offsets, mask = place(tile, block, rows, C, HW, LAST, R, K)
        v = tl.load(x + base + offsets, mask, 0.0).to(tl.float32)
        dz = tl.load(g + base + offsets, mask, 0.0).to(tl.float32)
        if ACT != 0:
            dz = z_gradient(
                dz, v, residual, bits, high, low, scale, shift, base, offsets, mask,
                tile, block, rows, C, HW, LAST, R, K, ACT,
            )  # fmt: skip
        out = scale * (dz - mean_g - ((v - high) - low) * slope)
        tl.store(dx + base + offsets, out.to(dx.dtype.element_ty), mask)
