"""Scale and shift of ProxyNorm: the moments of φ(u), u = gamma·((1 + g̃)·ξ + b̃) + beta.

The 200 quantiles of ξ make a 200×C table per layer. Its backward is written out for the common
activations, as autograd's would cost more than the whole layer at small batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

aten: Any = torch.ops.aten

QUANTILES = 200
"""Number of midpoint quantiles in the authors' code."""

HERMITE = 32
"""Nodes of the Gauss-Hermite rule, which is right to 2e-7 for SiLU."""

BACKWARDS: dict[type[nn.Module], Callable[[Any, Tensor, Tensor], Any]] = {
    nn.ReLU: lambda act, g, u: aten.threshold_backward(g, u, 0),
    nn.SiLU: lambda act, g, u: aten.silu_backward(g, u),
    nn.Hardswish: lambda act, g, u: aten.hardswish_backward(g, u),
    nn.GELU: lambda act, g, u: aten.gelu_backward(g, u, approximate=act.approximate),
}
"""g·φ′(u) for the activations whose backward is written out; others go through autograd."""


def quantiles() -> Tensor:
    """ξ_k = √2·erfinv(2(k + ½)/200 − 1) as a column, float64."""
    middle = (torch.arange(QUANTILES, dtype=torch.float64) + 0.5) / QUANTILES
    column: Tensor = torch.special.ndtri(middle).unsqueeze(1)
    return column


def hermite() -> tuple[Tensor, Tensor]:
    """Nodes and weights, columns in float64, with Σ w·f(ξ) ≈ E f(ξ)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(HERMITE)
    column = np.stack([nodes, weights / weights.sum()])[:, :, None]
    return torch.from_numpy(column[0]), torch.from_numpy(column[1])


class _QuantileScaleShift(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        gamma: Tensor,
        beta: Tensor,
        g: Tensor,
        b: Tensor,
        nodes: Tensor,
        act: nn.Module,
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        u = torch.addcmul(torch.addcmul(beta, gamma, b), nodes, torch.addcmul(gamma, gamma, g))
        phi = act(u.clone()) if getattr(act, "inplace", False) else act(u)
        # The native batch norm over the table: mean, 1/√(biased variance + eps), (φ − mean)·scale.
        centred, mean, scale = torch.native_batch_norm(phi, None, None, None, None, True, 0.0, eps)
        ctx.save_for_backward(gamma, g, b, nodes, u, centred, mean, scale)
        ctx.act = act
        return scale, -mean * scale

    @staticmethod
    def backward(ctx: Any, d_scale: Tensor, d_shift: Tensor) -> tuple[Tensor | None, ...]:
        gamma, g, b, nodes, u, centred, mean, scale = ctx.saved_tensors
        share = scale / nodes.shape[0]
        d_phi = torch.addcmul(-d_shift * share, centred, (mean * d_shift - d_scale) * scale * share)
        d_u = BACKWARDS[type(ctx.act)](ctx.act, d_phi, u)
        d_b, d_a = d_u.sum(0), (d_u * nodes).sum(0)
        d_gamma = torch.addcmul(torch.addcmul(d_a, d_a, g), d_b, b)
        return d_gamma, d_b, d_a * gamma, d_b * gamma, None, None, None


def scale_and_shift(
    gamma: Tensor, beta: Tensor, g: Tensor, b: Tensor, nodes: Tensor, act: nn.Module, eps: float
) -> tuple[Tensor, Tensor]:
    """1/√(Var φ(u) + eps) and −E φ(u)/√(Var φ(u) + eps) over the quantiles, C values each.

    Args:
        gamma: scale of the layer, C values, as the next three.
        beta: its shift.
        g: the proxy's extra scale g̃.
        b: the proxy's extra shift b̃.
        nodes: `quantiles()`, in the type of gamma.
        act: φ.
        eps: added to the variance.
    """
    if type(act) in BACKWARDS:
        scale, shift = _QuantileScaleShift.apply(gamma, beta, g, b, nodes, act, eps)
        return scale, shift
    a, b = torch.addcmul(gamma, gamma, g), torch.addcmul(beta, gamma, b)
    return _from_moments(*_weighted_moments(act, a, b, nodes, 1 / nodes.shape[0]), eps)


def exact_scale_and_shift(
    gamma: Tensor, beta: Tensor, g: Tensor, b: Tensor, rule: Tensor, act: nn.Module, eps: float
) -> tuple[Tensor, Tensor]:
    """As `scale_and_shift`, the moments in closed form for ReLU, else by `rule`, `hermite()`."""
    a, b = torch.addcmul(gamma, gamma, g), torch.addcmul(beta, gamma, b)
    if isinstance(act, nn.ReLU):
        return _from_moments(*relu_moments(a, b), eps)
    return _from_moments(*_weighted_moments(act, a, b, rule[0], rule[1]), eps)


def relu_moments(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Mean b·Φ(b/a) + a·φ(b/a) and variance of ReLU(a·ξ + b); a counts as |a|."""
    a = a.abs().clamp(min=1e-12)  # gamma = 0 (zero-initialised) leaves a constant, not a NaN
    t = b / a
    cdf = torch.special.ndtr(t)
    pdf = torch.exp(-0.5 * t.square()) * (1 / math.sqrt(2 * math.pi))
    mean = b * cdf + a * pdf
    second = (a.square() + b.square()) * cdf + a * b * pdf
    return mean, (second - mean.square()).clamp(min=0)


def _weighted_moments(
    act: nn.Module, a: Tensor, b: Tensor, nodes: Tensor, weights: Tensor | float
) -> tuple[Tensor, Tensor]:
    phi = act(torch.addcmul(b, nodes, a))
    mean = (weights * phi).sum(0)  # not a matrix product, which autocast would do in half
    return mean, (weights * (phi - mean).square()).sum(0)


def _from_moments(mean: Tensor, var: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    scale = torch.rsqrt(var + eps)
    return scale, -mean * scale
