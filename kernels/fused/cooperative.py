"""Batch norm where programs that share a block of channels wait for each other: one launch.

What `streaming` does in three launches, in three phases: each program goes over its tiles, the
first ones of a block merge what all have found, each goes over its tiles again, the last first. All
programs must be on the device at once: the launch is a cooperative one, which the driver refuses
where they do not fit.

They wait per block of channels, not per grid: a block's programs need nothing of another's. `flags`
[2, blocks] counts the programs that have gone over their tiles, and those that have merged. It is
zeroed before each launch: counters kept from call to call would be shared by launches on several
streams, and by graphs that hold their address.

PHASE −1 is all three. 0, 1 and 2 are each alone, without flags: interpreted programs run one after
the other, and would wait for ever.
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
    store_moments,
)
from normbench.kernels.fused.device import channels_of
from normbench.kernels.fused.passes import gradient_sums, moments, normalize, x_gradient

COUNTS = ["rows", "C8", "HW8", "tiles", "per_split", "SPLITS"]
"""Integers whose value must not make a kernel be compiled anew."""


@triton.jit
def arrive(flag):
    """Raise a counter; what all threads of this program have stored is seen by those it wakes.

    One thread raises it. The barrier puts the others' stores before that; on AMD's GPUs Triton's
    barrier does so for shared memory alone, and this way is not taken there.
    """
    tl.debug_barrier()
    tl.atomic_add(flag, 1, sem="release", scope="gpu")


@triton.jit
def wait_for(flag, count):
    """Until a counter is at `count`; no load behind this call is made before.

    One thread asks. Adding 0 makes asking an atomic access with acquire in every Triton; the
    barrier hands on to the others what it acquired.
    """
    while tl.atomic_add(flag, 0, sem="acquire", scope="gpu") < count:
        pass
    tl.debug_barrier()


@triton.jit
def channels_merged(block, split, LAST: tl.constexpr, K: tl.constexpr, WIDTH: tl.constexpr):
    """The channels that a program merges: WIDTH of those of its block."""
    return block * (K if LAST else 1) + split * WIDTH + tl.arange(0, WIDTH)


@triton.jit(do_not_specialize=COUNTS)
def cooperative_forward(
    x, y, residual, bits, staging, flags, saved, weight, bias, running_mean, running_var,
    step, active, newest, rows, C8, HW8, tiles, per_split, SPLITS,
    eps, momentum, unbias, rmax, dmax, hold, rfull, dfull,
    LAST: tl.constexpr, AC: tl.constexpr, AH: tl.constexpr, R: tl.constexpr, K: tl.constexpr,
    ACT: tl.constexpr, RENORM: tl.constexpr, STAGES: tl.constexpr,
    SP: tl.constexpr, WIDTH: tl.constexpr, PHASE: tl.constexpr,
):  # fmt: skip
    """Statistics, running values and y = φ(scale·(x − mean) + shift + residual)."""
    C, HW = C8 * AC, HW8 * AH
    block, split = tl.program_id(0), tl.program_id(1)
    through, merged = flags + block, flags + tl.num_programs(0) + block
    merging: tl.constexpr = K // WIDTH if LAST else 1
    c = channels_of(block, LAST, K)
    start = split * per_split
    stop = tl.minimum(start + per_split, tiles)
    if PHASE <= 0:
        pivot, offset, square, count = moments(
            x, start, stop, block, rows, C, HW, LAST, R, K, STAGES
        )  # fmt: skip
        store_moments(staging, c, c < C, split, SPLITS, C, pivot, offset, square, count)
        if PHASE == -1:
            arrive(through)
    if PHASE == 1 or PHASE == -1:  # noqa: SIM102  (decided in compilation, the next when it runs)
        if split < merging:
            if PHASE == -1:
                wait_for(through, SPLITS)
            m = channels_merged(block, split, LAST, K, WIDTH)
            high, low, variance = merge(staging, m, m < C, SPLITS, C, SP)
            batch_affine(
                saved, weight, bias, running_mean, running_var,
                step if RENORM else None, active, newest,
                m, m < C, high, low, variance, C, eps, momentum, unbias,
                rmax, dmax, hold, rfull, dfull, RENORM, True,
            )  # fmt: skip
            if step is not None and not RENORM:  # noqa: SIM102  (as above)
                if block + split == 0:  # `batch_affine` would in all that merge of block 0
                    tl.store(step, tl.load(step) + 1)
            if PHASE == -1:
                arrive(merged)
    if PHASE == 2 or PHASE == -1:
        if PHASE == -1:
            wait_for(merged, merging)
        high, low, scale, shift = affine_of(saved, c, c < C, C)
        normalize(
            x, y, residual, bits, high, low, scale, shift, start, stop, block, rows, C, HW,
            LAST, R, K, ACT, STAGES,
        )  # fmt: skip


@triton.jit(do_not_specialize=COUNTS)
def cooperative_backward(
    g, x, saved, residual, bits, d_residual, dx, staging, flags, means, d_weight, d_bias,
    rows, C8, HW8, tiles, per_split, SPLITS, values,
    LAST: tl.constexpr, AC: tl.constexpr, AH: tl.constexpr, R: tl.constexpr, K: tl.constexpr,
    ACT: tl.constexpr, RENORM: tl.constexpr, STAGES: tl.constexpr,
    SP: tl.constexpr, WIDTH: tl.constexpr, PHASE: tl.constexpr,
):  # fmt: skip
    """All gradients of training; that of x is scale·(dz − mean dz − x̂·mean(dz·x̂))."""
    C, HW = C8 * AC, HW8 * AH
    block, split = tl.program_id(0), tl.program_id(1)
    through, merged = flags + block, flags + tl.num_programs(0) + block
    merging: tl.constexpr = K // WIDTH if LAST else 1
    c = channels_of(block, LAST, K)
    start = split * per_split
    stop = tl.minimum(start + per_split, tiles)
    if PHASE <= 0:
        high, low, scale, shift = affine_of(saved, c, c < C, C)
        sums, dots = gradient_sums(
            g, x, residual, bits, d_residual, None, high, low, scale, shift, start, stop, block,
            rows, C, HW, LAST, R, K, ACT, STAGES,
        )  # fmt: skip
        tl.store(staging + split * C + c, sums, c < C)
        dots *= rstd_of(saved, c, c < C, C)
        tl.store(staging + (SPLITS + split) * C + c, dots, c < C)
        if PHASE == -1:
            arrive(through)
    if PHASE == 1 or PHASE == -1:  # noqa: SIM102  (decided in compilation, the next when it runs)
        if split < merging:
            if PHASE == -1:
                wait_for(through, SPLITS)
            m = channels_merged(block, split, LAST, K, WIDTH)
            sum_g, sum_gx = merge_sums(staging, m, m < C, SPLITS, C, SP)
            mean_g, mean_gx = backward_affine(
                saved, d_weight, d_bias, m, m < C, sum_g, sum_gx, C, values, RENORM, False
            )
            tl.store(means + m, mean_g, m < C)
            tl.store(means + C + m, mean_gx, m < C)
            if PHASE == -1:
                arrive(merged)
    if PHASE == 2 or PHASE == -1:
        if PHASE == -1:
            wait_for(merged, merging)
        mean_g = tl.load(means + c, c < C, 0.0)
        slope = tl.load(means + C + c, c < C, 0.0) * rstd_of(saved, c, c < C, C)
        high, low, scale, shift = affine_of(saved, c, c < C, C)
        if d_residual is not None:  # dz has been written: nothing has to be computed again
            x_gradient(
                d_residual, x, None, None, dx, high, low, scale, shift, mean_g, slope,
                start, stop, block, rows, C, HW, LAST, R, K, 0, STAGES,
            )  # fmt: skip
        else:
            x_gradient(
                g, x, residual, bits, dx, high, low, scale, shift, mean_g, slope,
                start, stop, block, rows, C, HW, LAST, R, K, ACT, STAGES,
            )  # fmt: skip
