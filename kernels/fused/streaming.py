"""Batch norm over tensors of any size, each value read from memory twice.

Forward: `stats` (a partial result per split and channel), `settle`, `apply`. Backward:
`backward_stats`, `backward_settle`, `backward_apply`. The passes that write run over the tiles in
reverse: the last ones read are still in the L2 cache. Every sum has a fixed order.

Each split subtracts a pivot, the mean of its first tile, from its values: squares lose nothing to
a large mean (channel_math.py has the rest).
"""

# Triton reads the annotations of jitted functions: no `from __future__ import annotations` here.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator"

import triton
import triton.language as tl

from normbench.kernels.fused.channel_math import (
    backward_affine,
    batch_affine,
    merge,
    running_affine,
)
from normbench.kernels.fused.device import (
    activate,
    activate_backward,
    affine,
    channels_of,
    count_of,
    over_rows,
    pack,
    place,
    place_bits,
    spread,
    unpack,
)

COUNTS = ["rows", "C8", "HW8", "tiles", "per_split", "SPLITS"]
"""Integers whose value must not make a kernel be compiled anew."""


@triton.jit(do_not_specialize=COUNTS)
def stats(
    x, staging, rows, C8, HW8, tiles, per_split, SPLITS,
    LAST: tl.constexpr, AC: tl.constexpr, AH: tl.constexpr, R: tl.constexpr, K: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Pivot, mean − pivot, Σ(x − mean)² and count of each channel in one split of the tiles."""
    C, HW = C8 * AC, HW8 * AH
    block, split = tl.program_id(0), tl.program_id(1)
    start = split * per_split
    stop = tl.minimum(start + per_split, tiles)
    base, offsets, mask = place(start, block, rows, C, HW, LAST, R, K)
    v = tl.load(x + base + offsets, mask, 0.0).to(tl.float32)
    count = count_of(start, rows, HW, LAST, R, K)
    pivot = over_rows(v, LAST) / count
    d = tl.where(mask, v - spread(pivot, LAST), 0.0)
    total, squares = d, d * d
    for tile in tl.range(start + 1, stop, num_stages=STAGES):
        base, offsets, mask = place(tile, block, rows, C, HW, LAST, R, K)
        v = tl.load(x + base + offsets, mask, 0.0).to(tl.float32)
        d = tl.where(mask, v - spread(pivot, LAST), 0.0)
        total += d
        squares += d * d
        count += count_of(tile, rows, HW, LAST, R, K)
    offset = over_rows(total, LAST) / count
    square = over_rows(squares, LAST) - offset * offset * count
    c = channels_of(block, LAST, K)
    at, part = split * C + c, SPLITS * C
    tl.store(staging + at, pivot, c < C)
    tl.store(staging + part + at, offset, c < C)
    tl.store(staging + 2 * part + at, square, c < C)
    tl.store(staging + 3 * part + at, offset * 0.0 + count, c < C)


@triton.jit(do_not_specialize=["C", "SPLITS"])
def settle(
    staging, saved, weight, bias, running_mean, running_spread, step, active, newest,
    C, SPLITS, eps, momentum, unbias, rmax, dmax, hold, rfull, dfull,
    RENORM: tl.constexpr, SP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Merge the splits of a block of channels; the affine map and the running values."""
    c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    high, low, variance = merge(staging, c, c < C, SPLITS, C, SP)
    batch_affine(
        saved, weight, bias, running_mean, running_spread, step, active, newest,
        c, c < C, high, low, variance, C, eps, momentum, unbias, rmax, dmax, hold, rfull, dfull,
        RENORM, True,
    )  # fmt: skip


@triton.jit
def affine_of(saved, c, inside, C, LAST: tl.constexpr):
    """Mean in two floats, scale and shift of the tile's channels."""
    high = spread(tl.load(saved + c, inside, 0.0), LAST)
    low = spread(tl.load(saved + C + c, inside, 0.0), LAST)
    scale = spread(tl.load(saved + 3 * C + c, inside, 0.0), LAST)
    shift = spread(tl.load(saved + 4 * C + c, inside, 0.0), LAST)
    return high, low, scale, shift


@triton.jit(do_not_specialize=COUNTS)
def apply(
    x, y, saved, residual, bits, weight, bias, running_mean, running_spread, eps,
    rows, C8, HW8, tiles, per_split,
    LAST: tl.constexpr, AC: tl.constexpr, AH: tl.constexpr, R: tl.constexpr, K: tl.constexpr,
    ACT: tl.constexpr, STANDARD_DEVIATION: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """φ(scale·(x − mean) + shift + residual); by the running values where `saved` is None."""
    C, HW = C8 * AC, HW8 * AH
    block, split = tl.program_id(0), tl.program_id(1)
    c = channels_of(block, LAST, K)
    if saved is not None:
        high, low, scale, shift = affine_of(saved, c, c < C, C, LAST)
    else:
        mean, _, by, plus = running_affine(
            weight, bias, running_mean, running_spread, c, c < C, eps, STANDARD_DEVIATION
        )
        high, scale, shift = spread(mean, LAST), spread(by, LAST), spread(plus, LAST)
        low = high * 0.0
    start = split * per_split
    stop = tl.minimum(start + per_split, tiles)
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


@triton.jit(do_not_specialize=COUNTS)
def backward_stats(
    g, x, saved, residual, bits, d_residual, staging, rows, C8, HW8, tiles, per_split, SPLITS,
    LAST: tl.constexpr, AC: tl.constexpr, AH: tl.constexpr, R: tl.constexpr, K: tl.constexpr,
    ACT: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Σ dz and Σ dz·x̂ of one split; also writes dz, the residual's gradient, where asked."""
    C, HW = C8 * AC, HW8 * AH
    block, split = tl.program_id(0), tl.program_id(1)
    c = channels_of(block, LAST, K)
    high, low, scale, shift = affine_of(saved, c, c < C, C, LAST)
    start = split * per_split
    stop = tl.minimum(start + per_split, tiles)
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
        dz = tl.where(mask, dz, 0.0)
        sums += dz
        dots += dz * ((v - high) - low)
    rstd = tl.load(saved + 2 * C + c, c < C, 0.0)
    at, part = split * C + c, SPLITS * C
    tl.store(staging + at, over_rows(sums, LAST), c < C)
    tl.store(staging + part + at, over_rows(dots, LAST) * rstd, c < C)


@triton.jit(do_not_specialize=["C", "SPLITS"])
def backward_settle(
    staging, saved, means, d_weight, d_bias, C, SPLITS, values,
    RENORM: tl.constexpr, EVAL: tl.constexpr, SP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums over the splits: gradients of gamma and beta, and the means that dx subtracts."""
    c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    s = tl.arange(0, SP)[:, None]
    mask = (s < SPLITS) & (c < C)[None, :]
    at = s * C + c[None, :]
    sum_g = tl.sum(tl.load(staging + at, mask, 0.0), 0)
    sum_gx = tl.sum(tl.load(staging + SPLITS * C + at, mask, 0.0), 0)
    mean_g, mean_gx = backward_affine(
        saved, d_weight, d_bias, c, c < C, sum_g, sum_gx, C, values, RENORM, EVAL
    )
    tl.store(means + c, mean_g, c < C)
    tl.store(means + C + c, mean_gx, c < C)


@triton.jit(do_not_specialize=COUNTS)
def backward_apply(
    g, x, saved, means, residual, bits, dx, rows, C8, HW8, tiles, per_split,
    LAST: tl.constexpr, AC: tl.constexpr, AH: tl.constexpr, R: tl.constexpr, K: tl.constexpr,
    ACT: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The gradient scale·(dz − mean dz − x̂·mean(dz·x̂))."""
    C, HW = C8 * AC, HW8 * AH
    block, split = tl.program_id(0), tl.program_id(1)
    c = channels_of(block, LAST, K)
    high, low, scale, shift = affine_of(saved, c, c < C, C, LAST)
    rstd = spread(tl.load(saved + 2 * C + c, c < C, 0.0), LAST)
    mean_g = spread(tl.load(means + c, c < C, 0.0), LAST)
    slope = spread(tl.load(means + C + c, c < C, 0.0), LAST) * rstd
    start = split * per_split
    stop = tl.minimum(start + per_split, tiles)
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
