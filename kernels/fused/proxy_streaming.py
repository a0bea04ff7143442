"""Proxy Normalization and group norm over samples of any size, each value read twice.

Forward: `stats` (a partial result per part of a sample and group), `settle` (proxy_table.py),
`apply`. Backward: `backward_stats`, `backward_settle`, `backward_apply`. The passes that write run
in reverse, programs and their tiles: the last ones read are still in the L2 cache. Every sum has a
fixed order.

`statistics` holds float32 rows of N·G values: mean, what its float leaves over, 1/σ, with
σ = √(variance + eps). `moments` holds rows of C values: m and s of the proxy; without one m is 0
and s is 1. `skip` is the number of the first program along the grid's second axis, for launches
over a part of the batch.
"""

# Triton reads the annotations of jitted functions: no `from __future__ import annotations` here.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator"

import triton
import triton.language as tl

from normbench.kernels.fused.device import activate, affine
from normbench.kernels.fused.proxy_device import (
    block_of,
    group_sum,
    in_tile,
    load_channels,
    load_group,
    load_moments,
    load_weight,
    of_group,
    over_positions,
    positions_of,
    proxy_output,
    samples_of,
    statistics_of,
    store_group,
    store_sums,
    tile_at,
    z_gradient,
)

COUNTS = [
    "N", "C8", "HW8", "U8", "G", "CG", "PIECES", "TILES", "PARTS", "PER_PART", "PER_PROGRAM",
    "skip", "PROGRAMS",
]  # fmt: skip
"""Integers whose value must not make a kernel be compiled anew."""


@triton.jit(do_not_specialize=COUNTS)
def stats(
    x, staging, N, C8, HW8, U8, G, CG, PIECES, TILES, PARTS, PER_PART, PER_PROGRAM, skip,
    LAST: tl.constexpr, AC: tl.constexpr, AH: tl.constexpr, AU: tl.constexpr,
    MANY: tl.constexpr, R: tl.constexpr, K: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Pivot, mean − pivot, Σ(x − mean)² and count of each group in one part of a sample.

    The pivot is the mean of the part's first tile: squares lose nothing to a large mean.
    """
    C, HW = C8 * AC, HW8 * AH
    c, inside, first, channels = block_of(tl.program_id(0), C, U8 * AU, PIECES, LAST, R, K)
    start, stop, part = samples_of(tl.program_id(1) + skip, N, PARTS, PER_PROGRAM)
    if MANY:
        channels = CG
    begin = part * PER_PART
    end = tl.minimum(begin + PER_PART, TILES)
    row = N * PARTS * PIECES
    for n in tl.range(start, stop):
        base, offsets, mask = tile_at(n, begin, first, inside, C, HW, LAST, R, K)
        v = tl.load(x + base + offsets, mask, 0.0).to(tl.float32)
        positions = positions_of(begin, HW, LAST, R, K)
        pivot = group_sum(v, c, inside, CG, LAST, MANY) / (positions * channels).to(tl.float32)
        d = tl.where(mask, v - in_tile(pivot, LAST, MANY), 0.0)
        total, squares = d, d * d
        for p in tl.range(begin + 1, end, num_stages=STAGES):
            base, offsets, mask = tile_at(n, p, first, inside, C, HW, LAST, R, K)
            v = tl.load(x + base + offsets, mask, 0.0).to(tl.float32)
            d = tl.where(mask, v - in_tile(pivot, LAST, MANY), 0.0)
            total += d
            squares += d * d
            positions += positions_of(p, HW, LAST, R, K)
        count = (positions * channels).to(tl.float32)
        offset = group_sum(total, c, inside, CG, LAST, MANY) / count
        square = group_sum(squares, c, inside, CG, LAST, MANY) - offset * offset * count
        entry = (part * PIECES + tl.program_id(0) % PIECES) * N + n
        store_group(staging, entry, G, pivot, c, first, inside, CG, MANY)
        store_group(staging, row + entry, G, offset, c, first, inside, CG, MANY)
        store_group(staging, 2 * row + entry, G, square, c, first, inside, CG, MANY)
        store_group(staging, 3 * row + entry, G, offset * 0.0 + count, c, first, inside, CG, MANY)


@triton.jit(do_not_specialize=COUNTS)
def apply(
    x, y, statistics, moments, weight, bias,
    N, C8, HW8, U8, G, CG, PIECES, TILES, PARTS, PER_PART, PER_PROGRAM, skip,
    LAST: tl.constexpr, AC: tl.constexpr, AH: tl.constexpr, AU: tl.constexpr,
    MANY: tl.constexpr, R: tl.constexpr, K: tl.constexpr, STAGES: tl.constexpr,
    ACT: tl.constexpr, PROXY: tl.constexpr,
):  # fmt: skip
    """(φ(gamma·(x − mean)/σ + beta) − m)·s."""
    C, HW = C8 * AC, HW8 * AH
    c, inside, first, _ = block_of(tl.program_id(0), C, U8 * AU, PIECES, LAST, R, K)
    program = skip + tl.num_programs(1) - 1 - tl.program_id(1)
    start, stop, part = samples_of(program, N, PARTS, PER_PROGRAM)
    gamma = in_tile(load_weight(weight, c, inside), LAST, True)
    shift = in_tile(load_channels(bias, c, inside), LAST, True)
    m, s = load_moments(moments, c, inside, C, PROXY)
    m, s = in_tile(m, LAST, True), in_tile(s, LAST, True)
    begin = start * TILES + part * PER_PART
    end = tl.minimum(begin + (stop - start - 1) * TILES + PER_PART, stop * TILES)
    for i in tl.range(begin, end, num_stages=STAGES):
        tile = begin + end - 1 - i
        n = tile // TILES
        high, low, rstd = statistics_of(statistics, n, N, G, c, first, inside, CG, MANY)
        high, low = in_tile(high, LAST, MANY), in_tile(low, LAST, MANY)
        scale = gamma * in_tile(rstd, LAST, MANY)
        base, offsets, mask = tile_at(n, tile % TILES, first, inside, C, HW, LAST, R, K)
        v = tl.load(x + base + offsets, mask, 0.0).to(tl.float32)
        out = proxy_output(v, high, low, scale, shift, m, s, ACT, PROXY)
        tl.store(y + base + offsets, out.to(y.dtype.element_ty), mask)


@triton.jit(do_not_specialize=COUNTS)
def backward_stats(
    g, x, statistics, moments, weight, bias, groups, sums,
    N, C8, HW8, U8, G, CG, PIECES, TILES, PARTS, PER_PART, PER_PROGRAM, skip, PROGRAMS,
    LAST: tl.constexpr, AC: tl.constexpr, AH: tl.constexpr, AU: tl.constexpr,
    MANY: tl.constexpr, R: tl.constexpr, K: tl.constexpr, STAGES: tl.constexpr,
    ACT: tl.constexpr, PROXY: tl.constexpr,
):  # fmt: skip
    """What the sums over a group and over a channel need, of this program's tiles.

    With du = s·g·φ′(z) and y = (x − mean)/σ: in `groups`, per sample, Σ gamma·du and Σ gamma·du·y;
    in `sums`, per channel, Σ du, Σ du·y, Σ g and Σ g·(φ(z) − m).
    """
    C, HW = C8 * AC, HW8 * AH
    program = tl.program_id(1) + skip
    c, inside, first, _ = block_of(tl.program_id(0), C, U8 * AU, PIECES, LAST, R, K)
    start, stop, part = samples_of(program, N, PARTS, PER_PROGRAM)
    shift = load_channels(bias, c, inside)
    m, _ = load_moments(moments, c, inside, C, PROXY)
    at, m = in_tile(shift, LAST, True), in_tile(m, LAST, True)
    begin = part * PER_PART
    end = tl.minimum(begin + PER_PART, TILES)
    row = N * PARTS * PIECES
    all_du, all_duy = shift * 0.0, shift * 0.0
    out_g = tl.zeros((R, K), tl.float32)
    out_phi = tl.zeros((R, K), tl.float32)
    for n in tl.range(start, stop):
        high, low, rstd = statistics_of(statistics, n, N, G, c, first, inside, CG, MANY)
        scale = in_tile(load_weight(weight, c, inside) * rstd, LAST, True)
        high, low = in_tile(high, LAST, MANY), in_tile(low, LAST, MANY)
        du = tl.zeros((R, K), tl.float32)
        duy = tl.zeros((R, K), tl.float32)
        for p in tl.range(begin, end, num_stages=STAGES):
            base, offsets, mask = tile_at(n, p, first, inside, C, HW, LAST, R, K)
            v = tl.load(x + base + offsets, mask, 0.0).to(tl.float32)
            dy = tl.load(g + base + offsets, mask, 0.0).to(tl.float32)
            dz = tl.where(mask, z_gradient(dy, v, high, low, scale, at, ACT), 0.0)
            du += dz
            duy += dz * ((v - high) - low)
            if PROXY:
                phi = activate(affine(v, high, low, scale, at), ACT)
                out_g += dy
                out_phi += dy * (phi - m)
        # Loaded anew: a value per channel that is kept over the loop costs registers.
        _, s = load_moments(moments, c, inside, C, PROXY)
        gamma = load_weight(weight, c, inside)
        channel_du = over_positions(du, LAST) * s
        channel_duy = over_positions(duy, LAST) * s * rstd
        all_du += channel_du
        all_duy += channel_duy
        entry = (part * PIECES + tl.program_id(0) % PIECES) * N + n
        group_du = of_group(gamma * channel_du, c, inside, CG, MANY)
        group_duy = of_group(gamma * channel_duy, c, inside, CG, MANY)
        store_group(groups, entry, G, group_du, c, first, inside, CG, MANY)
        store_group(groups, row + entry, G, group_duy, c, first, inside, CG, MANY)
    all_g, all_phi = over_positions(out_g, LAST), over_positions(out_phi, LAST)
    store_sums(
        sums, weight, bias, program, PROGRAMS, c, inside, C, all_du, all_duy, all_g, all_phi,
        PROXY,
    )  # fmt: skip


@triton.jit(do_not_specialize=COUNTS)
def backward_apply(
    g, x, dx, statistics, moments, weight, bias, means,
    N, C8, HW8, U8, G, CG, PIECES, TILES, PARTS, PER_PART, PER_PROGRAM, skip,
    LAST: tl.constexpr, AC: tl.constexpr, AH: tl.constexpr, AU: tl.constexpr,
    MANY: tl.constexpr, R: tl.constexpr, K: tl.constexpr, STAGES: tl.constexpr,
    ACT: tl.constexpr, PROXY: tl.constexpr,
):  # fmt: skip
    """The gradient (gamma·du − mean(gamma·du) − y·mean(gamma·du·y))/σ."""
    C, HW = C8 * AC, HW8 * AH
    c, inside, first, _ = block_of(tl.program_id(0), C, U8 * AU, PIECES, LAST, R, K)
    program = skip + tl.num_programs(1) - 1 - tl.program_id(1)
    start, stop, part = samples_of(program, N, PARTS, PER_PROGRAM)
    gamma = in_tile(load_weight(weight, c, inside), LAST, True)
    shift = in_tile(load_channels(bias, c, inside), LAST, True)
    _, s = load_moments(moments, c, inside, C, PROXY)
    factor = gamma * in_tile(s, LAST, True)
    begin = start * TILES + part * PER_PART
    end = tl.minimum(begin + (stop - start - 1) * TILES + PER_PART, stop * TILES)
    for i in tl.range(begin, end, num_stages=STAGES):
        tile = begin + end - 1 - i
        n = tile // TILES
        high, low, rstd = statistics_of(statistics, n, N, G, c, first, inside, CG, MANY)
        mean_du = load_group(means, n, G, c, first, inside, CG, MANY)
        mean_duy = load_group(means, N + n, G, c, first, inside, CG, MANY)
        high, low = in_tile(high, LAST, MANY), in_tile(low, LAST, MANY)
        away = in_tile(mean_du, LAST, MANY)
        slope = in_tile(mean_duy * rstd, LAST, MANY)
        rstd = in_tile(rstd, LAST, MANY)
        base, offsets, mask = tile_at(n, tile % TILES, first, inside, C, HW, LAST, R, K)
        v = tl.load(x + base + offsets, mask, 0.0).to(tl.float32)
        dy = tl.load(g + base + offsets, mask, 0.0).to(tl.float32)
        dz = z_gradient(dy, v, high, low, gamma * rstd, shift, ACT)
        out = rstd * (factor * dz - away - ((v - high) - low) * slope)
        tl.store(dx + base + offsets, out.to(dx.dtype.element_ty), mask)
