"""Device functions per channel: from moments to the affine map and the running values.

Arguments `c` and `inside` are a row of channels with their mask, or one channel and True. `saved`
holds float32 rows of C values:

    0 mean      1 what the float of row 0 leaves over      2 1/σ, σ = √(variance + eps)
    3 scale of the affine map    4 its shift    5 r    6 d (Batch Renorm only)

so that z = ((x − saved[0]) − saved[1])·scale + shift: exact to float32 where the mean is large.
"""

# Triton reads the annotations of jitted functions: no `from __future__ import annotations` here.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator"

import triton
import triton.language as tl


@triton.jit
def two_sum(a, b):
    """The float nearest to a + b, and what it leaves over."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


@triton.jit
def store_moments(staging, c, inside, split, SPLITS, C, pivot, offset, square, count):
    """What `merge` takes of one split."""
    at, part = split * C + c, SPLITS * C
    tl.store(staging + at, pivot, inside)
    tl.store(staging + part + at, offset, inside)
    tl.store(staging + 2 * part + at, square, inside)
    tl.store(staging + 3 * part + at, offset * 0.0 + count, inside)


@triton.jit
def merge(staging, c, inside, SPLITS, C, SP: tl.constexpr):
    """Mean (in two floats) and variance of all splits: Chan's formula, splits in order.

    `staging` holds rows pivot, mean − pivot, Σ(x − mean)² and count of each split and channel.
    """
    s = tl.arange(0, SP)[:, None]
    at = s * C + c[None, :]
    mask = (s < SPLITS) & inside[None, :]
    part = SPLITS * C
    pivot = tl.load(staging + at, mask, 0.0)
    offset = tl.load(staging + part + at, mask, 0.0)
    square = tl.load(staging + 2 * part + at, mask, 0.0)
    count = tl.load(staging + 3 * part + at, mask, 0.0)
    first = tl.load(staging + c, inside, 0.0)
    offset += tl.where(mask, pivot - first[None, :], 0.0)
    values = tl.where(inside, tl.sum(count, 0), 1.0)
    mean = tl.sum(offset * count, 0) / values
    away = tl.where(mask, offset - mean[None, :], 0.0)
    variance = (tl.sum(square, 0) + tl.sum(away * away * count, 0)) / values
    high, low = two_sum(first, mean)
    return high, low, not_negative(variance)


@triton.jit
def merge_sums(staging, c, inside, SPLITS, C, SP: tl.constexpr):
    """Σ dz and Σ dz·x̂ of all splits, the two rows of `staging`."""
    s = tl.arange(0, SP)[:, None]
    mask = (s < SPLITS) & inside[None, :]
    at = s * C + c[None, :]
    sum_g = tl.sum(tl.load(staging + at, mask, 0.0), 0)
    return sum_g, tl.sum(tl.load(staging + SPLITS * C + at, mask, 0.0), 0)


@triton.jit
def not_negative(v):
    """0 where rounding has made a variance negative; NaN stays, as it does in `clip`."""
    return tl.where(v < 0.0, 0.0, v)


@triton.jit
def clip(v, low, high):
    """The value, or the bound it is beyond."""
    return tl.where(v < low, low, tl.where(v > high, high, v))


@triton.jit
def ramp(step, start, full):
    """0 up to step `start`, 1 from step `full`, linear between."""
    begin = tl.minimum(start, full - 1.0)
    return tl.minimum(tl.maximum((step - begin) / (full - begin), 0.0), 1.0)


@triton.jit
def note_active(active, newest, step, changed):
    """Count the step in `active[0]` once, whichever programs find r ≠ 1 in it."""
    if changed != 0:
        before = tl.atomic_max(newest, step + 1)
        if before < step + 1:
            tl.atomic_add(active, 1)


@triton.jit
def blend(running, c, inside, now, momentum):
    """Move a running value by the share `momentum` towards that of this batch."""
    old = tl.load(running + c, inside, 0.0).to(tl.float32)
    new = old + momentum * (now - old)
    tl.store(running + c, new.to(running.dtype.element_ty), inside)


@triton.jit
def store_saved(saved, c, inside, C, high, low, rstd, scale, shift):
    """Rows 0 to 4."""
    tl.store(saved + c, high, inside)
    tl.store(saved + C + c, low, inside)
    tl.store(saved + 2 * C + c, rstd, inside)
    tl.store(saved + 3 * C + c, scale, inside)
    tl.store(saved + 4 * C + c, shift, inside)


@triton.jit
def batch_affine(
    saved, weight, bias, running_mean, running_var, step, active, newest,
    c, inside, high, low, variance, C, eps, momentum, unbias, rmax, dmax, hold, rfull, dfull,
    RENORM: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """Writes `saved`, moves the running values; returns scale and shift.

    Batch Renorm's r and d come from the running values as they were before. It averages σ, and
    keeps σ² − eps: its running variance is used as any other. All of its programs read the step,
    so that none can raise it; for a batch norm, which has no schedule, the first one does.
    """
    std = tl.sqrt_rn(variance + eps)
    rstd = tl.div_rn(1.0, std)
    scale, shift = rstd, rstd * 0.0
    if RENORM:
        now = tl.load(step)
        at = now.to(tl.float32)
        top = 1.0 + (rmax - 1.0) * ramp(at, hold, rfull)
        far = dmax * ramp(at, hold, dfull)
        old_mean = tl.load(running_mean + c, inside, 0.0).to(tl.float32)
        old_var = tl.load(running_var + c, inside, 1.0).to(tl.float32)
        old_std = tl.sqrt_rn(old_var + eps)
        r = clip(tl.div_rn(std, old_std), tl.div_rn(1.0, top), top)
        d = clip(tl.div_rn((high - old_mean) + low, old_std), -far, far)
        tl.store(saved + 5 * C + c, r, inside)
        tl.store(saved + 6 * C + c, d, inside)
        changed = tl.where(inside & (r != 1.0), 1, 0)
        if VECTOR:
            changed = tl.max(changed, 0)
        note_active(active, newest, now, changed)
        scale, shift = r * rstd, d
        tl.debug_barrier()  # every warp has read the old values before one writes the new ones
        new_std = old_std + momentum * (std - old_std)
        new_var = new_std * new_std - eps
        tl.store(running_var + c, new_var.to(running_var.dtype.element_ty), inside)
    else:
        if step is not None:  # noqa: SIM102  (decided in compilation, the next when it runs)
            if tl.program_id(0) == 0:
                tl.store(step, tl.load(step) + 1)
        if running_var is not None:
            blend(running_var, c, inside, variance * unbias, momentum)
    if running_mean is not None:
        blend(running_mean, c, inside, high + low, momentum)
    if weight is not None:
        gamma = tl.load(weight + c, inside, 0.0).to(tl.float32)
        scale, shift = scale * gamma, shift * gamma
    if bias is not None:
        shift += tl.load(bias + c, inside, 0.0).to(tl.float32)
    store_saved(saved, c, inside, C, high, low, rstd, scale, shift)
    return scale, shift


@triton.jit
def affine_of(saved, c, inside, C):
    """Mean in two floats, scale and shift from `saved`."""
    high = tl.load(saved + c, inside, 0.0)
    low = tl.load(saved + C + c, inside, 0.0)
    scale = tl.load(saved + 3 * C + c, inside, 0.0)
    shift = tl.load(saved + 4 * C + c, inside, 0.0)
    return high, low, scale, shift


@triton.jit
def rstd_of(saved, c, inside, C):
    """1/σ from `saved`, apart so that no register holds it through a loop that does not use it."""
    return tl.load(saved + 2 * C + c, inside, 0.0)


@triton.jit
def running_affine(kept, weight, bias, running_mean, running_var, c, inside, first, C, eps):
    """Mean in two floats, scale and shift from the running values.

    Where `kept` is given and `first` holds, also writes them there, as rows of `saved`.
    """
    mean = tl.load(running_mean + c, inside, 0.0).to(tl.float32)
    variance = tl.load(running_var + c, inside, 1.0).to(tl.float32)
    rstd = tl.div_rn(1.0, tl.sqrt_rn(variance + eps))
    low = mean * 0.0
    scale, shift = rstd, rstd * 0.0
    if weight is not None:
        scale *= tl.load(weight + c, inside, 0.0).to(tl.float32)
    if bias is not None:
        shift += tl.load(bias + c, inside, 0.0).to(tl.float32)
    if kept is not None:  # noqa: SIM102  (decided in compilation, the next when it runs)
        if first:
            store_saved(kept, c, inside, C, mean, low, rstd, scale, shift)
    return mean, low, scale, shift


@triton.jit
def backward_affine(
    saved, d_weight, d_bias, c, inside, sum_g, sum_gx, C, values,
    RENORM: tl.constexpr, EVAL: tl.constexpr,
):  # fmt: skip
    """From Σg and Σg·x̂ the gradients of gamma and beta; returns the means that dx subtracts."""
    if d_bias is not None:
        tl.store(d_bias + c, sum_g.to(d_bias.dtype.element_ty), inside)
    if d_weight is not None:
        of_weight = sum_gx
        if RENORM:
            r = tl.load(saved + 5 * C + c, inside, 0.0)
            d = tl.load(saved + 6 * C + c, inside, 0.0)
            of_weight = r * sum_gx + d * sum_g
        tl.store(d_weight + c, of_weight.to(d_weight.dtype.element_ty), inside)
    if EVAL:
        return sum_g * 0.0, sum_gx * 0.0
    else:
        return sum_g / values, sum_gx / values
