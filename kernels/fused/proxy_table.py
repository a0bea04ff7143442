"""What is computed per channel and per sample beside the passes: small kernels.

Of u = a·ξ + b with a = gamma·(1 + g̃), b = gamma·b̃ + beta: m = E φ(u), v = E (φ(u) − m)² and
s = 1/√(v + proxy_eps), over 200 midpoint quantiles (RULE 0), by 32 Gauss-Hermite nodes (RULE 1), or
in closed form for ReLU (RULE 2). Nodes are made here: a tensor of them would be one more thing to
keep on every device, and alive in every CUDA graph.

Each launch also merges what a pass left in parts; which of the two a program does, its number says.
"""

# Triton reads the annotations of jitted functions: no `from __future__ import annotations` here.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator"

import triton
import triton.language as tl

from normbench.kernels.fused.channel_math import merge
from normbench.kernels.fused.device import activate, activate_backward
from normbench.kernels.fused.proxy_device import load_channels

NODES = tl.constexpr(
    (
        0.27554641923027584, 0.8272849037797652, 1.3809801992721442, 1.9380049059257174,
        2.4998404151873954, 3.0681351690131216, 3.644781249880833, 4.23202110999541,
        4.832604613244489, 5.450033273623428, 6.088964309076987, 6.755930830540705,
        7.460755754121519, 8.219728765382245, 9.064399210702405, 10.077422674229465,
    )
)  # fmt: skip
WEIGHTS = tl.constexpr(
    (
        0.21170556988047928, 0.1565389937575985, 0.08534480827208074, 0.03410984772609207,
        0.009903461702320593, 0.0020620510513078808,
        0.00030255702581706285, 3.0559803060896336e-05,
        2.0596221039534275e-06, 8.88129071310589e-08,
        2.3125184120742393e-09, 3.347501239801196e-11,
        2.3780648557778086e-13, 6.755290223670204e-16,
        5.208449591960913e-19, 4.1246074890182835e-23,
    )
)  # fmt: skip
"""Gauss-Hermite rule of 32 nodes for a standard normal ξ: the positive nodes, their weights."""

COUNTS = ["C", "COLUMNS", "PARTS", "FIRST", "STOP", "MERGERS", "PROGRAMS"]
"""Integers whose value must not make a kernel be compiled anew."""


@triton.jit
def quantile(k):
    """The k-th of 200 midpoint quantiles of a standard normal, √2·erfinv((2k − 199)/200).

    (2k − 199)·p(w) with w = −log((1 − q)(1 + q)), q = (2k − 199)/200, as in Giles' erfinv; p is
    fitted to the 200: 1e-8 from them before rounding.
    """
    k = k.to(tl.float32)
    w = -tl.log((2.0 * k + 1.0) * (399.0 - 2.0 * k) * (1.0 / 40000.0)) - 2.5
    p = tl.fma(w * 0.0 + 5.07496476e-10, w, 3.5131994e-09)
    p = tl.fma(p, w, -2.62000359e-08)
    p = tl.fma(p, w, -3.79970555e-08)
    p = tl.fma(p, w, 1.54461537e-06)
    p = tl.fma(p, w, -8.85490607e-06)
    p = tl.fma(p, w, -2.95378437e-05)
    p = tl.fma(p, w, 0.00174400954)
    p = tl.fma(p, w, 0.0106165673)
    return p * (2.0 * k - 199.0)


@triton.jit
def rule(RULE: tl.constexpr):
    """Nodes and weights of a rule as rows; weight 0 fills up to a power of two."""
    if RULE == 0:
        k = tl.arange(0, 256)
        xi = quantile(tl.minimum(k, 199))
        weight = tl.where(k < 200, 1.0 / 200.0, 0.0)
    else:
        k = tl.arange(0, 32)
        half = tl.where(k < 16, 15 - k, k - 16)
        xi, weight = half * 0.0, half * 0.0
        for i in tl.static_range(16):
            xi = tl.where(half == i, NODES[i], xi)
            weight = tl.where(half == i, WEIGHTS[i], weight)
        xi = tl.where(k < 16, -xi, xi)
    return xi[None, :], weight[None, :]


@triton.jit
def proxy_of(weight, bias, proxy_weight, proxy_bias, c, inside):
    """Gamma, 1 + g̃, b̃, and slope and offset of u."""
    gamma, beta = load_channels(weight, c, inside), load_channels(bias, c, inside)
    stretch = 1.0 + load_channels(proxy_weight, c, inside)
    move = load_channels(proxy_bias, c, inside)
    return gamma, stretch, move, gamma * stretch, tl.fma(gamma, move, beta)


@triton.jit
def relu_parts(a, b):
    """|a| (kept from 0: gamma may be), Φ(t) and ϕ(t) of t = b/|a|, E ReLU(u), E ReLU(−u).

    In float64: two error functions a channel, whose errors would be those of every output.
    """
    a, b = a.to(tl.float64), b.to(tl.float64)
    size = tl.maximum(tl.abs(a), 1e-12)
    t = b / size
    below = 0.5 * (1.0 + tl.erf(t * 0.7071067811865476))
    above = 0.5 * (1.0 - tl.erf(t * 0.7071067811865476))
    density = 0.3989422804014327 * tl.exp(-0.5 * t * t)
    return size, below, density, b * below + size * density, size * density - b * above


@triton.jit
def mean_of(phi, weight):
    """Weighted mean over the nodes, to the last bit: the backward takes differences from it."""
    mean = tl.sum(weight * phi, 1)
    return mean + tl.sum(weight * (phi - mean[:, None]), 1)


@triton.jit
def proxy_moments(a, b, ACT: tl.constexpr, RULE: tl.constexpr):
    """E φ(u) and Var φ(u)."""
    if RULE == 2:
        # Var = a²·Φ(t) − E ReLU(u)·E ReLU(−u): no difference of large squares.
        size, below, _, mean, other = relu_parts(a, b)
        var = tl.maximum(size * size * below - mean * other, 0.0)
        return mean.to(tl.float32), var.to(tl.float32)
    else:
        xi, weight = rule(RULE)
        phi = activate(tl.fma(xi, a[:, None], b[:, None]), ACT)
        mean = mean_of(phi, weight)
        away = phi - mean[:, None]
        return mean, tl.sum(weight * away * away, 1)


@triton.jit
def proxy_backward(a, b, dm, dv, ACT: tl.constexpr, RULE: tl.constexpr):
    """Gradients of a and b from those of the moments."""
    if RULE == 2:
        size, below, density, mean, _ = relu_parts(a, b)
        d_size = dm * density + 2.0 * dv * (size * below - mean * density)
        d_a = tl.where(a > 1e-12, d_size, tl.where(a < -1e-12, -d_size, 0.0))
        d_b = below * dm + 2.0 * dv * mean * (1.0 - below)
        return d_a.to(tl.float32), d_b.to(tl.float32)
    else:
        xi, weight = rule(RULE)
        u = tl.fma(xi, a[:, None], b[:, None])
        phi = activate(u, ACT)
        mean = mean_of(phi, weight)
        d_phi = weight * (dm[:, None] + 2.0 * dv[:, None] * (phi - mean[:, None]))
        du = activate_backward(d_phi, u, ACT)
        return tl.sum(du * xi, 1), tl.sum(du, 1)


@triton.jit
def merge_statistics(staging, statistics, column, inside, PARTS, COLUMNS, eps, SP: tl.constexpr):
    """Mean and 1/σ of some samples' groups from their parts."""
    high, low, variance = merge(staging, column, inside, PARTS, COLUMNS, SP)
    tl.store(statistics + column, high, inside)
    tl.store(statistics + COLUMNS + column, low, inside)
    rstd = tl.div_rn(1.0, tl.sqrt_rn(variance + eps))
    tl.store(statistics + 2 * COLUMNS + column, rstd, inside)


@triton.jit
def store_moments(
    moments, weight, bias, proxy_weight, proxy_bias, c, inside, C, proxy_eps,
    ACT: tl.constexpr, RULE: tl.constexpr,
):  # fmt: skip
    """The proxy's m and s of some channels."""
    _, _, _, a, b = proxy_of(weight, bias, proxy_weight, proxy_bias, c, inside)
    m, v = proxy_moments(a, b, ACT, RULE)
    tl.store(moments + c, m, inside)
    tl.store(moments + C + c, tl.div_rn(1.0, tl.sqrt_rn(v + proxy_eps)), inside)


@triton.jit(do_not_specialize=COUNTS)
def settle(
    staging, statistics, moments, weight, bias, proxy_weight, proxy_bias,
    C, COLUMNS, PARTS, FIRST, STOP, MERGERS, eps, proxy_eps,
    ACT: tl.constexpr, RULE: tl.constexpr, PROXY: tl.constexpr,
    SP: tl.constexpr, COLUMN_BLOCK: tl.constexpr, CHANNEL_BLOCK: tl.constexpr,
):  # fmt: skip
    """Statistics of the samples' groups FIRST to STOP from their parts; m and s per channel."""
    column = FIRST + tl.program_id(0) * COLUMN_BLOCK + tl.arange(0, COLUMN_BLOCK)
    c = (tl.program_id(0) - MERGERS) * CHANNEL_BLOCK + tl.arange(0, CHANNEL_BLOCK)
    if tl.program_id(0) < MERGERS:
        if staging is not None:
            merge_statistics(staging, statistics, column, column < STOP, PARTS, COLUMNS, eps, SP)
    elif PROXY:
        store_moments(
            moments, weight, bias, proxy_weight, proxy_bias, c, c < C, C, proxy_eps, ACT, RULE
        )


@triton.jit
def merge_means(groups, means, column, inside, PARTS, COLUMNS, values, SP: tl.constexpr):
    """The means that dx subtracts, of some samples' groups, from their parts."""
    part = tl.arange(0, SP)[:, None]
    at = part * COLUMNS + column[None, :]
    mask = (part < PARTS) & inside[None, :]
    du = tl.sum(tl.load(groups + at, mask, 0.0), 0)
    duy = tl.sum(tl.load(groups + PARTS * COLUMNS + at, mask, 0.0), 0)
    tl.store(means + column, du / values, inside)
    tl.store(means + COLUMNS + column, duy / values, inside)


@triton.jit
def over_programs(sums, c, inside, C, PROGRAMS, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Sum over the programs of a pass, in a fixed order."""
    r = tl.arange(0, ROWS)[:, None]
    total = tl.zeros((ROWS, WIDTH), tl.float32)
    for start in tl.range(0, PROGRAMS, ROWS):
        mask = (r < PROGRAMS - start) & inside[None, :]
        total += tl.load(sums + (start + r) * C + c[None, :], mask, 0.0)
    return tl.sum(total, 0)


@triton.jit
def parameter_gradients(
    sums, moments, weight, bias, proxy_weight, proxy_bias,
    d_weight, d_bias, d_proxy_weight, d_proxy_bias, c, inside, C, PROGRAMS,
    ACT: tl.constexpr, RULE: tl.constexpr, PROXY: tl.constexpr,
    ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Gradients of the parameters of some channels, through z and, of a proxy, m and s."""
    row = PROGRAMS * C
    if weight is not None:
        d_gamma = over_programs(sums, c, inside, C, PROGRAMS, ROWS, WIDTH)
    if bias is not None:
        d_beta = over_programs(sums + row, c, inside, C, PROGRAMS, ROWS, WIDTH)
    if PROXY:
        sum_g = over_programs(sums + 2 * row, c, inside, C, PROGRAMS, ROWS, WIDTH)
        d_s = over_programs(sums + 3 * row, c, inside, C, PROGRAMS, ROWS, WIDTH)
        gamma, stretch, move, a, b = proxy_of(weight, bias, proxy_weight, proxy_bias, c, inside)
        s = tl.load(moments + C + c, inside, 0.0)
        d_a, d_b = proxy_backward(a, b, -s * sum_g, -0.5 * s * s * s * d_s, ACT, RULE)
        d_gamma += d_a * stretch + d_b * move
        d_beta += d_b
    if bias is not None:
        tl.store(d_bias + c, d_beta.to(d_bias.dtype.element_ty), inside)
    if PROXY:
        d_g, d_move = d_a * gamma, d_b * gamma
        tl.store(d_proxy_weight + c, d_g.to(d_proxy_weight.dtype.element_ty), inside)
        tl.store(d_proxy_bias + c, d_move.to(d_proxy_bias.dtype.element_ty), inside)
    if weight is not None:
        tl.store(d_weight + c, d_gamma.to(d_weight.dtype.element_ty), inside)


@triton.jit(do_not_specialize=COUNTS)
def backward_settle(
    groups, means, sums, moments, weight, bias, proxy_weight, proxy_bias,
    d_weight, d_bias, d_proxy_weight, d_proxy_bias,
    C, COLUMNS, PARTS, FIRST, STOP, MERGERS, PROGRAMS, values,
    ACT: tl.constexpr, RULE: tl.constexpr, PROXY: tl.constexpr,
    SP: tl.constexpr, COLUMN_BLOCK: tl.constexpr, CHANNEL_BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """The means that dx subtracts, of groups FIRST to STOP; the gradients of the parameters."""
    column = FIRST + tl.program_id(0) * COLUMN_BLOCK + tl.arange(0, COLUMN_BLOCK)
    c = (tl.program_id(0) - MERGERS) * CHANNEL_BLOCK + tl.arange(0, CHANNEL_BLOCK)
    if tl.program_id(0) < MERGERS:
        if groups is not None:
            merge_means(groups, means, column, column < STOP, PARTS, COLUMNS, values, SP)
    else:
        parameter_gradients(
            sums, moments, weight, bias, proxy_weight, proxy_bias,
            d_weight, d_bias, d_proxy_weight, d_proxy_bias, c, c < C, C, PROGRAMS,
            ACT, RULE, PROXY, ROWS, CHANNEL_BLOCK,
        )  # fmt: skip
