"""Batch norm where a block of channels fits into one program's registers: one launch, one read.

What small batches need: forward moves 2 values per element (read x, write y), backward 3, and
there is nothing to wait for between launches.
"""

# Triton reads the annotations of jitted functions: no `from __future__ import annotations` here.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator"

import triton
import triton.language as tl

from normbench.kernels.fused.channel_math import (
    affine_of,
    backward_affine,
    batch_affine,
    rstd_of,
    two_sum,
)
from normbench.kernels.fused.device import (
    activate,
    affine,
    channels_of,
    over_rows,
    pack,
    place,
    place_bits,
    spread,
)
from normbench.kernels.fused.passes import z_gradient


@triton.jit(do_not_specialize=["rows", "C8", "HW8"])
def resident_forward(
    x, y, residual, bits, saved, weight, bias, running_mean, running_spread, step, active, newest,
    rows, C8, HW8, values, eps, momentum, unbias, rmax, dmax, hold, rfull, dfull,
    LAST: tl.constexpr, AC: tl.constexpr, AH: tl.constexpr, R: tl.constexpr, K: tl.constexpr,
    ACT: tl.constexpr, RENORM: tl.constexpr,
):  # fmt: skip
    """Statistics, running values and y = φ(scale·(x − mean) + shift + residual)."""
    C, HW = C8 * AC, HW8 * AH
    block = tl.program_id(0)
    c = channels_of(block, LAST, K)
    base, offsets, mask = place(0, block, rows, C, HW, LAST, R, K)
    v = tl.load(x + base + offsets, mask, 0.0).to(tl.float32)
    pivot = over_rows(v, LAST) / values
    d = tl.where(mask, v - spread(pivot, LAST), 0.0)
    rest = over_rows(d, LAST) / values
    d = tl.where(mask, d - spread(rest, LAST), 0.0)
    variance = over_rows(d * d, LAST) / values
    high, low = two_sum(pivot, rest)
    scale, shift = batch_affine(
        saved, weight, bias, running_mean, running_spread, step, active, newest,
        c, c < C, high, low, variance, C, eps, momentum, unbias, rmax, dmax, hold, rfull, dfull,
        RENORM, LAST,
    )  # fmt: skip
    mean, rest = spread(high, LAST), spread(low, LAST)
    z = affine(v, mean, rest, spread(scale, LAST), spread(shift, LAST))
    if residual is not None:
        z += tl.load(residual + base + offsets, mask, 0.0).to(tl.float32)
    if bits is not None:
        bit_base, bit_offsets, bit_mask = place_bits(0, block, rows, C, HW, LAST, R, K)
        tl.store(bits + bit_base + bit_offsets, pack(z > 0.0, R, K), bit_mask)
    tl.store(y + base + offsets, activate(z, ACT).to(y.dtype.element_ty), mask)


@triton.jit(do_not_specialize=["rows", "C8", "HW8"])
def resident_backward(
    g, x, saved, residual, bits, d_residual, dx, d_weight, d_bias, rows, C8, HW8, values,
    LAST: tl.constexpr, AC: tl.constexpr, AH: tl.constexpr, R: tl.constexpr, K: tl.constexpr,
    ACT: tl.constexpr, RENORM: tl.constexpr, EVAL: tl.constexpr,
):  # fmt: skip
    """All gradients; that of x is scale·(dz − mean dz − x̂·mean(dz·x̂))."""
    C, HW = C8 * AC, HW8 * AH
    block = tl.program_id(0)
    c = channels_of(block, LAST, K)
    high, low, scale, shift = affine_of(saved, c, c < C, C)
    high, low = spread(high, LAST), spread(low, LAST)
    scale, shift = spread(scale, LAST), spread(shift, LAST)
    base, offsets, mask = place(0, block, rows, C, HW, LAST, R, K)
    v = tl.load(x + base + offsets, mask, 0.0).to(tl.float32)
    dz = tl.load(g + base + offsets, mask, 0.0).to(tl.float32)
    if ACT != 0:
        dz = z_gradient(
            dz, v, residual, bits, high, low, scale, shift, base, offsets, mask,
            0, block, rows, C, HW, LAST, R, K, ACT,
        )  # fmt: skip
        if d_residual is not None:
            dz = dz.to(d_residual.dtype.element_ty)
            tl.store(d_residual + base + offsets, dz, mask)
            dz = dz.to(tl.float32)
    dz = tl.where(mask, dz, 0.0)
    centred = (v - high) - low
    sum_g = over_rows(dz, LAST)
    rstd = rstd_of(saved, c, c < C, C)
    sum_gx = over_rows(dz * centred, LAST) * rstd
    mean_g, mean_gx = backward_affine(
        saved, d_weight, d_bias, c, c < C, sum_g, sum_gx, C, values, RENORM, EVAL
    )
    out = scale * (dz - spread(mean_g, LAST) - centred * spread(mean_gx * rstd, LAST))
    tl.store(dx + base + offsets, out.to(dx.dtype.element_ty), mask)
