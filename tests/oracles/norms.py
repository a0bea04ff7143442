"""The equations of the papers, in float64 NumPy.

Nothing here imports normbench or torch. Gradients are central finite differences of these
functions, so that a backward is checked against the forward's definition alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def per_channel(values: Array, ndim: int) -> Array:
    """C values shaped to broadcast over N,C,*."""
    return values.reshape((1, -1) + (1,) * (ndim - 2))


def batch_axes(x: Array) -> tuple[int, ...]:
    return (0, *range(2, x.ndim))


def affine(y: Array, gamma: Array, beta: Array) -> Array:
    return per_channel(gamma, y.ndim) * y + per_channel(beta, y.ndim)


@dataclass
class BatchNorm:
    """Ioffe & Szegedy 2015: algorithm 1 and its inference with the unbiased variance."""

    channels: int
    eps: float
    momentum: float
    mean: Array = field(init=False)
    var: Array = field(init=False)

    def __post_init__(self) -> None:
        self.mean, self.var = np.zeros(self.channels), np.ones(self.channels)

    def evaluate(self, x: Array, gamma: Array, beta: Array) -> Array:
        centred = x - per_channel(self.mean, x.ndim)
        return affine(centred / np.sqrt(per_channel(self.var, x.ndim) + self.eps), gamma, beta)

    def train(self, x: Array, gamma: Array, beta: Array) -> Array:
        axes = batch_axes(x)
        mean, var = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
        return affine((x - mean) / np.sqrt(var + self.eps), gamma, beta)

    def update(self, x: Array) -> None:
        axes = batch_axes(x)
        self.mean += self.momentum * (x.mean(axes) - self.mean)
        self.var += self.momentum * (x.var(axes, ddof=1) - self.var)


class MovingAverage(BatchNorm):
    """Training by the moving averages as they were before this batch."""

    def train(self, x: Array, gamma: Array, beta: Array) -> Array:
        return self.evaluate(x, gamma, beta)


@dataclass
class BatchRenorm:
    """Ioffe 2017, algorithm 1. `corrections` are the constants r and d of a batch."""

    channels: int
    eps: float = 1e-3
    momentum: float = 0.01
    mean: Array = field(init=False)
    std: Array = field(init=False)

    def __post_init__(self) -> None:
        self.mean, self.std = np.zeros(self.channels), np.ones(self.channels)

    def statistics(self, x: Array) -> tuple[Array, Array]:
        axes = batch_axes(x)
        return x.mean(axes), np.sqrt(x.var(axes) + self.eps)

    def corrections(self, x: Array, rmax: float, dmax: float) -> tuple[Array, Array]:
        mean, std = self.statistics(x)
        r = np.minimum(np.maximum(std / self.std, 1 / rmax), rmax)
        return r, np.minimum(np.maximum((mean - self.mean) / self.std, -dmax), dmax)

    def train(self, x: Array, gamma: Array, beta: Array, r: Array, d: Array) -> Array:
        mean, std = (per_channel(v, x.ndim) for v in self.statistics(x))
        x_hat = (x - mean) / std * per_channel(r, x.ndim) + per_channel(d, x.ndim)
        return affine(x_hat, gamma, beta)

    def update(self, x: Array) -> None:
        mean, std = self.statistics(x)
        self.mean += self.momentum * (mean - self.mean)
        self.std += self.momentum * (std - self.std)

    def evaluate(self, x: Array, gamma: Array, beta: Array) -> Array:
        y = (x - per_channel(self.mean, x.ndim)) / per_channel(self.std, x.ndim)
        return affine(y, gamma, beta)


def renorm_limits(step: int, rmax: float, dmax: float) -> tuple[float, float]:
    """The paper's schedule (section 4): 1 and 0 for 5k steps, then linear to 40k and to 25k."""
    return (
        float(np.interp(step, [5000, 40000], [1.0, rmax])),
        float(np.interp(step, [5000, 25000], [0.0, dmax])),
    )


def group_norm(x: Array, gamma: Array, beta: Array, groups: int, eps: float) -> Array:
    """Wu & He 2018, equations 1 to 4 and 7, one sample and one group at a time."""
    y = np.empty_like(x)
    size = x.shape[1] // groups
    for n in range(x.shape[0]):
        for g in range(groups):
            part = slice(g * size, (g + 1) * size)
            values = x[n, part]
            y[n, part] = (values - values.mean()) / np.sqrt(values.var() + eps)
    return affine(y, gamma, beta)


def layer_norm_channels(x: Array, gamma: Array, beta: Array, eps: float) -> Array:
    """Ba et al. 2016, equations 3 and 4, over the channels of each position."""
    mean, var = x.mean(1, keepdims=True), x.var(1, keepdims=True)
    return affine((x - mean) / np.sqrt(var + eps), gamma, beta)


def instance_norm(x: Array, gamma: Array, beta: Array, eps: float) -> Array:
    """Ulyanov et al. 2016, equation 5."""
    axes = tuple(range(2, x.ndim))
    mean, var = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    return affine((x - mean) / np.sqrt(var + eps), gamma, beta)


def standardized_weight(weight: Array, eps: float) -> Array:
    """Qiao et al. 2019: the authors' code, filter by filter."""
    rows = [(w - w.mean()) / (w.std(ddof=1) + eps) for w in weight]
    return np.stack(rows)


def relu(x: Array) -> Array:
    return np.maximum(x, 0.0)


def silu(x: Array) -> Array:
    return x / (1.0 + np.exp(-x))


def midpoint_quantiles(count: int = 200) -> Array:
    normal = NormalDist()
    return np.array([normal.inv_cdf((k + 0.5) / count) for k in range(count)])


def proxy_norm(
    x: Array, params: tuple[Array, Array, Array, Array], act: Callable[[Array], Array],
    groups: int, eps: float, proxy_eps: float,
) -> Array:  # fmt: skip
    """Labatie et al. 2021 with the quantiles of the authors' code.

    `params` are gamma, beta, the proxy's extra scale and its extra shift.
    """
    gamma, beta, g, b = params
    ones, zeros = np.ones_like(gamma), np.zeros_like(gamma)
    z = act(affine(group_norm(x, ones, zeros, groups, eps), gamma, beta))
    proxy = act(
        gamma[:, None] * ((1 + g)[:, None] * midpoint_quantiles() + b[:, None]) + beta[:, None]
    )
    mean, std = proxy.mean(1), np.sqrt(proxy.var(1) + proxy_eps)
    return (z - per_channel(mean, x.ndim)) / per_channel(std, x.ndim)


def gradient(function: Callable[[Array], float], at: Array, step: float = 1e-6) -> Array:
    """Central finite differences of a scalar function."""
    result = np.empty_like(at)
    point = at.copy()
    for index in np.ndindex(at.shape):
        value = point[index]
        point[index] = value + step
        above = function(point)
        point[index] = value - step
        result[index] = (above - function(point)) / (2 * step)
        point[index] = value
    return result
