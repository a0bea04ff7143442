"""Batch norm where one program takes all tiles of a block of channels: one launch.

For tensors too large to stay in registers and too small to be worth three launches. What a program
reads a second time, it has just read: it comes from the L2 cache.
"""

# Triton reads the annotations of jitted functions: no `from __future__ import annotations` here.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator"

import triton
import triton.language as tl

from normbench.kernels.fused.channel_math import (
    affine_of,
    backward_affine,
    batch_affine,
    not_negative,
    rstd_of,
    two_sum,
)
from normbench.kernels.fused.device import channels_of
from normbench.kernels.fused.passes import gradient_sums, moments, normalize, x_gradient

COUNTS = ["rows", "C8", "HW8", "tiles"]
"""Integers whose value must not make a kernel be compiled anew."""


@triton.jit(do_not_specialize=COUNTS)
def looped_forward(
    x, y, residual, bits, saved, weight, bias, running_mean, running_var, step, active, newest,
    rows, C8, HW8, tiles, values, eps, momentum, unbias, rmax, dmax, hold, rfull, dfull,
    LAST: tl.constexpr, AC: tl.constexpr, AH: tl.constexpr, R: tl.constexpr, K: tl.constexpr,
    ACT: tl.constexpr, RENORM: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Statistics, running values and y = φ(scale·(x − mean) + shift + residual)."""
    C, HW = C8 * AC, HW8 * AH
    block = tl.program_id(0)
    c = channels_of(block, LAST, K)
    pivot, offset, square, _ = moments(x, 0, tiles, block, rows, C, HW, LAST, R, K, STAGES)
    high, low = two_sum(pivot, offset)
    variance = not_negative(square / values)
    scale, shift = batch_affine(
        saved, weight, bias, running_mean, running_var, step, active, newest,
        c, c < C, high, low, variance, C, eps, momentum, unbias, rmax, dmax, hold, rfull, dfull,
        RENORM, LAST,
    )  # fmt: skip
    normalize(
        x, y, residual, bits, high, low, scale, shift, 0, tiles, block, rows, C, HW,
        LAST, R, K, ACT, STAGES,
    )  # fmt: skip


@triton.jit(do_not_specialize=COUNTS)
def looped_backward(
    g, x, saved, residual, bits, d_residual, dx, d_weight, d_bias, rows, C8, HW8, tiles, values,
    LAST: tl.constexpr, AC: tl.constexpr, AH: tl.constexpr, R: tl.constexpr, K: tl.constexpr,
    ACT: tl.constexpr, RENORM: tl.constexpr, EVAL: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """All gradients; that of x is scale·(dz − mean dz − x̂·mean(dz·x̂))."""
    C, HW = C8 * AC, HW8 * AH
    block = tl.program_id(0)
    c = channels_of(block, LAST, K)
    high, low, scale, shift = affine_of(saved, c, c < C, C)
    rstd = rstd_of(saved, c, c < C, C)
    sums, dots = gradient_sums(
        g, x, residual, bits, d_residual, dx if EVAL else None, high, low, scale, shift,
        0, tiles, block, rows, C, HW, LAST, R, K, ACT, STAGES,
    )  # fmt: skip
    mean_g, mean_gx = backward_affine(
        saved, d_weight, d_bias, c, c < C, sums, dots * rstd, C, values, RENORM, EVAL
    )
    if not EVAL:
        x_gradient(
            g, x, residual, bits, dx, high, low, scale, shift, mean_g, mean_gx * rstd,
            0, tiles, block, rows, C, HW, LAST, R, K, ACT, STAGES,
        )  # fmt: skip
