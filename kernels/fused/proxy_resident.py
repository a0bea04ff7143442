"""Proxy and group norm where the groups of a block fit into one program's registers: one read.

Forward moves 2 values per element (read x, write y), backward 3. A program of a small tile goes
through several samples of its block of channels (LOOP).
"""

# Triton reads the annotations of jitted functions: no `from __future__ import annotations` here.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator"

import triton
import triton.language as tl

from normbench.kernels.fused.channel_math import two_sum
from normbench.kernels.fused.device import activate, affine
from normbench.kernels.fused.proxy_device import (
    block_of,
    group_sum,
    in_tile,
    load_channels,
    load_moments,
    load_weight,
    of_group,
    over_positions,
    proxy_output,
    samples_of,
    statistics_of,
    store_group,
    store_sums,
    tile_at,
    z_gradient,
)

COUNTS = ["N", "C8", "HW8", "U8", "G", "CG", "PER_PROGRAM", "PROGRAMS"]
"""Integers whose value must not make a kernel be compiled anew."""


@triton.jit
def sample_forward(
    x, y, statistics, moments, weight, bias, n, c, inside, first, N, C, HW, G, CG, values, eps,
    LAST: tl.constexpr, MANY: tl.constexpr, R: tl.constexpr, K: tl.constexpr,
    ACT: tl.constexpr, PROXY: tl.constexpr,
):  # fmt: skip
    """Statistics and output of one sample."""
    base, offsets, mask = tile_at(n, 0, first, inside, C, HW, LAST, R, K)
    v = tl.load(x + base + offsets, mask, 0.0).to(tl.float32)
    pivot = group_sum(v, c, inside, CG, LAST, MANY) / values
    d = tl.where(mask, v - in_tile(pivot, LAST, MANY), 0.0)
    rest = group_sum(d, c, inside, CG, LAST, MANY) / values
    d = tl.where(mask, d - in_tile(rest, LAST, MANY), 0.0)
    variance = group_sum(d * d, c, inside, CG, LAST, MANY) / values
    high, low = two_sum(pivot, rest)
    rstd = tl.div_rn(1.0, tl.sqrt_rn(variance + eps))
    store_group(statistics, n, G, high, c, first, inside, CG, MANY)
    store_group(statistics, N + n, G, low, c, first, inside, CG, MANY)
    store_group(statistics, 2 * N + n, G, rstd, c, first, inside, CG, MANY)
    high, low = in_tile(high, LAST, MANY), in_tile(low, LAST, MANY)
    scale = in_tile(load_weight(weight, c, inside) * rstd, LAST, True)
    shift = in_tile(load_channels(bias, c, inside), LAST, True)
    m, s = load_moments(moments, c, inside, C, PROXY)
    m, s = in_tile(m, LAST, True), in_tile(s, LAST, True)
    out = proxy_output(v, high, low, scale, shift, m, s, ACT, PROXY)
    tl.store(y + base + offsets, out.to(y.dtype.element_ty), mask)


@triton.jit(do_not_specialize=COUNTS)
def resident_forward(
    x, y, statistics, moments, weight, bias, N, C8, HW8, U8, G, CG, PER_PROGRAM, values, eps,
    LAST: tl.constexpr, AC: tl.constexpr, AH: tl.constexpr, AU: tl.constexpr,
    MANY: tl.constexpr, R: tl.constexpr, K: tl.constexpr,
    ACT: tl.constexpr, PROXY: tl.constexpr, LOOP: tl.constexpr,
):  # fmt: skip
    """Statistics and (φ(gamma·(x − mean)/σ + beta) − m)·s."""
    C, HW = C8 * AC, HW8 * AH
    c, inside, first, _ = block_of(tl.program_id(0), C, U8 * AU, 1, LAST, R, K)
    start, stop, _ = samples_of(tl.program_id(1), N, 1, PER_PROGRAM)
    sample_forward(
        x, y, statistics, moments, weight, bias, start, c, inside, first,
        N, C, HW, G, CG, values, eps, LAST, MANY, R, K, ACT, PROXY,
    )  # fmt: skip
    if LOOP:
        for n in tl.range(start + 1, stop):
            sample_forward(
                x, y, statistics, moments, weight, bias, n, c, inside, first,
                N, C, HW, G, CG, values, eps, LAST, MANY, R, K, ACT, PROXY,
            )  # fmt: skip


@triton.jit
def sample_backward(
    g, x, dx, statistics, moments, weight, bias, n, c, inside, first, N, C, HW, G, CG, values,
    LAST: tl.constexpr, MANY: tl.constexpr, R: tl.constexpr, K: tl.constexpr,
    ACT: tl.constexpr, PROXY: tl.constexpr,
):  # fmt: skip
    """The gradient of x in one sample and its sums per channel."""
    high, low, rstd = statistics_of(statistics, n, N, G, c, first, inside, CG, MANY)
    gamma, shift = load_weight(weight, c, inside), load_channels(bias, c, inside)
    scale, shift = in_tile(gamma * rstd, LAST, True), in_tile(shift, LAST, True)
    high, low = in_tile(high, LAST, MANY), in_tile(low, LAST, MANY)
    base, offsets, mask = tile_at(n, 0, first, inside, C, HW, LAST, R, K)
    v = tl.load(x + base + offsets, mask, 0.0).to(tl.float32)
    dy = tl.load(g + base + offsets, mask, 0.0).to(tl.float32)
    m, s = load_moments(moments, c, inside, C, PROXY)
    sum_g, sum_phi = m, m
    if PROXY:
        phi = activate(affine(v, high, low, scale, shift), ACT) - in_tile(m, LAST, True)
        sum_g, sum_phi = over_positions(dy, LAST), over_positions(dy * phi, LAST)
    dz = tl.where(mask, z_gradient(dy, v, high, low, scale, shift, ACT), 0.0)
    centred = (v - high) - low
    du, duy = over_positions(dz, LAST) * s, over_positions(dz * centred, LAST) * s * rstd
    away = of_group(gamma * du, c, inside, CG, MANY) / values
    slope = of_group(gamma * duy, c, inside, CG, MANY) / values * rstd
    out = in_tile(gamma * s, LAST, True) * dz - in_tile(away, LAST, MANY)
    out = in_tile(rstd, LAST, MANY) * (out - centred * in_tile(slope, LAST, MANY))
    tl.store(dx + base + offsets, out.to(dx.dtype.element_ty), mask)
    return du, duy, sum_g, sum_phi


@triton.jit(do_not_specialize=COUNTS)
def resident_backward(
    g, x, dx, statistics, moments, weight, bias, sums,
    N, C8, HW8, U8, G, CG, PER_PROGRAM, values, PROGRAMS,
    LAST: tl.constexpr, AC: tl.constexpr, AH: tl.constexpr, AU: tl.constexpr,
    MANY: tl.constexpr, R: tl.constexpr, K: tl.constexpr,
    ACT: tl.constexpr, PROXY: tl.constexpr, LOOP: tl.constexpr,
):  # fmt: skip
    """The gradient of x and the sums per channel (`proxy_streaming.backward_stats`)."""
    C, HW = C8 * AC, HW8 * AH
    c, inside, first, _ = block_of(tl.program_id(0), C, U8 * AU, 1, LAST, R, K)
    program = tl.program_id(1)
    start, stop, _ = samples_of(program, N, 1, PER_PROGRAM)
    du, duy, sum_g, sum_phi = sample_backward(
        g, x, dx, statistics, moments, weight, bias, start, c, inside, first,
        N, C, HW, G, CG, values, LAST, MANY, R, K, ACT, PROXY,
    )  # fmt: skip
    if LOOP:
        for n in tl.range(start + 1, stop):
            one, two, three, four = sample_backward(
                g, x, dx, statistics, moments, weight, bias, n, c, inside, first,
                N, C, HW, G, CG, values, LAST, MANY, R, K, ACT, PROXY,
            )  # fmt: skip
            du, duy, sum_g, sum_phi = du + one, duy + two, sum_g + three, sum_phi + four
    store_sums(
        sums, weight, bias, program, PROGRAMS, c, inside, C, du, duy, sum_g, sum_phi, PROXY,
    )  # fmt: skip
