"""Batch norm over tensors of any size: the tiles of a block of channels shared among programs.

Forward: `stats` (a partial result per split and channel), `settle`, `apply`. Backward:
`backward_stats`, `backward_settle`, `backward_apply`. Every sum has a fixed order.
"""

# Triton reads the annotations of jitted functions: no `from __future__ import annotations` here.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator"

import triton
import triton.language as tl

from normbench.kernels.fused.channel_math import (
    affine_of,
    backward_affine,
    batch_affine,
    merge,
    merge_sums,
    rstd_of,
    running_affine,
    store_moments,
)
from normbench.kernels.fused.device import channels_of
from normbench.kernels.fused.passes import gradient_sums, moments, normalize, x_gradient

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
    pivot, offset, square, count = moments(
        x, start, stop, block, rows, C, HW, LAST, R, K, STAGES
    )  # fmt: skip
    c = channels_of(block, LAST, K)
    store_moments(staging, c, c < C, split, SPLITS, C, pivot, offset, square, count)


@triton.jit(do_not_specialize=["C", "SPLITS"])
def settle(
    staging, saved, weight, bias, running_mean, running_var, step, active, newest,
    C, SPLITS, eps, momentum, unbias, rmax, dmax, hold, rfull, dfull,
    RENORM: tl.constexpr, SP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Merge the splits of a block of channels; the affine map and the running values."""
    c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    high, low, variance = merge(staging, c, c < C, SPLITS, C, SP)
    batch_affine(
        saved, weight, bias, running_mean, running_var, step, active, newest,
        c, c < C, high, low, variance, C, eps, momentum, unbias, rmax, dmax, hold, rfull, dfull,
        RENORM, True,
    )  # fmt: skip


@triton.jit(do_not_specialize=COUNTS)
def apply(
    x, y, saved, residual, bits, kept, weight, bias, running_mean, running_var, eps,
    rows, C8, HW8, tiles, per_split,
    LAST: tl.constexpr, AC: tl.constexpr, AH: tl.constexpr, R: tl.constexpr, K: tl.constexpr,
    ACT: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """φ(scale·(x − mean) + shift + residual).

    By the running values where `saved` is None; `kept` then receives what it would hold.
    """
    C, HW = C8 * AC, HW8 * AH
    block, split = tl.program_id(0), tl.program_id(1)
    c = channels_of(block, LAST, K)
    if saved is not None:
        high, low, scale, shift = affine_of(saved, c, c < C, C)
    else:
        high, low, scale, shift = running_affine(
            kept, weight, bias, running_mean, running_var, c, c < C, split == 0, C, eps
        )
    start = split * per_split
    stop = tl.minimum(start + per_split, tiles)
    normalize(
        x, y, residual, bits, high, low, scale, shift, start, stop, block, rows, C, HW,
        LAST, R, K, ACT, STAGES,
    )  # fmt: skip


@triton.jit(do_not_specialize=COUNTS)
def backward_stats(
    g, x, saved, residual, bits, d_residual, dx, staging, rows, C8, HW8, tiles, per_split, SPLITS,
    LAST: tl.constexpr, AC: tl.constexpr, AH: tl.constexpr, R: tl.constexpr, K: tl.constexpr,
    ACT: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Σ dz and Σ dz·x̂ of one split, where asked; dz and scale·dz, where asked (`passes`)."""
    C, HW = C8 * AC, HW8 * AH
    block, split = tl.program_id(0), tl.program_id(1)
    c = channels_of(block, LAST, K)
    high, low, scale, shift = affine_of(saved, c, c < C, C)
    start = split * per_split
    stop = tl.minimum(start + per_split, tiles)
    sums, dots = gradient_sums(
        g, x, residual, bits, d_residual, dx, high, low, scale, shift, start, stop, block,
        rows, C, HW, LAST, R, K, ACT, STAGES,
    )  # fmt: skip
    if staging is not None:
        at, part = split * C + c, SPLITS * C
        tl.store(staging + at, sums, c < C)
        tl.store(staging + part + at, dots * rstd_of(saved, c, c < C, C), c < C)


@triton.jit(do_not_specialize=["C", "SPLITS"])
def backward_settle(
    staging, saved, means, d_weight, d_bias, C, SPLITS, values,
    RENORM: tl.constexpr, EVAL: tl.constexpr, SP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums over the splits: gradients of gamma and beta, and the means that dx subtracts."""
    c = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    sum_g, sum_gx = merge_sums(staging, c, c < C, SPLITS, C, SP)
    mean_g, mean_gx = backward_affine(
        saved, d_weight, d_bias, c, c < C, sum_g, sum_gx, C, values, RENORM, EVAL
    )
    if means is not None:
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
    high, low, scale, shift = affine_of(saved, c, c < C, C)
    mean_g = tl.load(means + c, c < C, 0.0)
    slope = tl.load(means + C + c, c < C, 0.0) * rstd_of(saved, c, c < C, C)
    start = split * per_split
    stop = tl.minimum(start + per_split, tiles)
    x_gradient(
        g, x, residual, bits, dx, high, low, scale, shift, mean_g, slope,
        start, stop, block, rows, C, HW, LAST, R, K, ACT, STAGES,
    )  # fmt: skip
