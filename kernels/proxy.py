"""Proxy Normalization on torch's native ops: group norm, activation and affine of the proxy.

    out = (φ(z) − m)·s,  z = gamma·y + beta,  m = E φ(u),  s = 1/√(Var φ(u) + proxy_eps)
    u = gamma·((1 + g̃)·ξ + b̃) + beta

The 200 quantiles of ξ make a 200×C table per layer. For the common activations the backward of the
whole layer is written out: autograd's would cost more than the layer itself at small batches, and
at large ones the intermediate results that it cannot overwrite are what takes the time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from normbench.kernels.channels import as_layout_of
from normbench.kernels.grouped import check_groups, group_norm

aten: Any = torch.ops.aten

QUANTILES = 200
"""Number of midpoint quantiles in the authors' code."""

HERMITE = 32
"""Nodes of the Gauss-Hermite rule, which is right to 2e-7 for SiLU."""


class Learned(NamedTuple):
    """The layer's parameters, C values each: scale and shift, and the proxy's extra ones g̃, b̃."""

    gamma: Tensor
    beta: Tensor
    g: Tensor
    b: Tensor


@dataclass(frozen=True, slots=True)
class Written:
    """An activation φ whose backward is written out.

    Attributes:
        forward: φ(z), out of place.
        backward: g·φ′(z) from g and z.
    """

    forward: Callable[[Any, Tensor], Tensor]
    backward: Callable[[Any, Tensor, Tensor], Tensor]


WRITTEN: dict[type[nn.Module], Written] = {
    nn.ReLU: Written(lambda _, z: torch.relu(z), lambda _, g, z: aten.threshold_backward(g, z, 0)),
    nn.SiLU: Written(lambda _, z: F.silu(z), lambda _, g, z: aten.silu_backward(g, z)),
    nn.Hardswish: Written(
        lambda _, z: F.hardswish(z), lambda _, g, z: aten.hardswish_backward(g, z)
    ),
    nn.GELU: Written(
        lambda act, z: F.gelu(z, approximate=act.approximate),
        lambda act, g, z: aten.gelu_backward(g, z, approximate=act.approximate),
    ),
}
"""Activations with a backward of their own here, by exact type; others go through autograd."""


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


class _ProxyNorm(torch.autograd.Function):
    """The whole layer, for the activations in `WRITTEN`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        gamma: Tensor,
        beta: Tensor,
        g: Tensor,
        b: Tensor,
        nodes: Tensor,
        ones: Tensor,
        act: nn.Module,
        groups: int,
        eps: float,
        proxy_eps: float,
    ) -> Tensor:
        phi, relu = WRITTEN[type(act)].forward, type(act) is nn.ReLU
        u = torch.addcmul(torch.addcmul(beta, gamma, b), nodes, torch.addcmul(gamma, gamma, g))
        # The native batch norm over the table: (φ(u) − m)·s, m and s.
        table, m, s = torch.native_batch_norm(
            phi(act, u), None, None, None, None, True, 0.0, proxy_eps
        )
        shape = (x.shape[0], x.shape[1], x.shape[2:].numel(), groups)
        x = as_layout_of(x, x)
        z, mean, inverse_std = aten.native_group_norm(x, gamma, beta, *shape, eps)
        y = z.relu_() if relu else phi(act, z)  # what ReLU's backward needs is in its result
        ctx.save_for_backward(
            x, gamma, g, b, nodes, ones, u, table, m, s, mean, inverse_std, z, y
        )  # fmt: skip
        ctx.act, ctx.shape = act, shape
        # Batch norm in evaluation with mean m and variance 1 is the native per-channel affine.
        return torch.batch_norm(y, s, None, m, ones, False, 0.0, 0.0, False)

    @staticmethod
    @once_differentiable  # its own backward is not written: an error, not a wrong number
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gamma, g, b, nodes, ones, u, table, m, s, mean, inverse_std, z, y = ctx.saved_tensors
        derivative = WRITTEN[type(ctx.act)].backward
        # Mean and 1/√variance twice: which of the two is read differs between kernels of torch.
        d_y, d_s, sums = aten.native_batch_norm_backward(
            grad, y, s, m, ones, m, ones, False, 0.0, (True, True, True)
        )
        if type(ctx.act) is nn.ReLU:
            d_z = aten.threshold_backward.grad_input(d_y, y, 0, grad_input=d_y)
        else:
            d_z = derivative(ctx.act, d_y, z)
        d_x, d_gamma, d_beta = aten.native_group_norm_backward(
            as_layout_of(d_z, x), x, mean, inverse_std, gamma, *ctx.shape, (True, True, True)
        )
        # Through the table: dm = −s·Σ grad and ds/dφ_k = −s²·table_k/K.
        share = s * (-1 / nodes.shape[0])
        d_phi = torch.addcmul(share * sums, table, share * s * d_s)
        d_u = derivative(ctx.act, d_phi, u)
        d_b, d_a = d_u.sum(0), (d_u * nodes).sum(0)
        d_gamma.addcmul_(d_a, g).add_(d_a).addcmul_(d_b, b)
        gradients = (d_x, d_gamma, d_beta.add_(d_b), d_a * gamma, d_b * gamma)
        return *gradients, None, None, None, None, None, None


def proxy_norm(
    x: Tensor,
    learned: Learned,
    nodes: Tensor,
    ones: Tensor,
    act: nn.Module,
    groups: int,
    eps: float,
    proxy_eps: float,
) -> Tensor:
    """Group norm of x, activation and the proxy's affine, the moments over the quantiles.

    Args:
        x: N,C,* input.
        learned: the parameters, of x's type.
        nodes: `quantiles()`, of x's type.
        ones: C ones.
        act: φ.
        groups: of the group norm.
        eps: added to the group norm's variance.
        proxy_eps: added to the proxy's variance.

    Raises:
        ValueError: if a group pools a single value.
    """
    if type(act) not in WRITTEN:
        a, b = table_of(learned)
        moments = weighted_moments(act, a, b, nodes, 1 / nodes.shape[0])
        return composed(x, learned, moments, ones, act, groups, eps, proxy_eps)
    check_groups(x, groups)
    y: Tensor = _ProxyNorm.apply(x, *learned, nodes, ones, act, groups, eps, proxy_eps)
    return y


def exact_proxy_norm(
    x: Tensor,
    learned: Learned,
    rule: Tensor,
    ones: Tensor,
    act: nn.Module,
    groups: int,
    eps: float,
    proxy_eps: float,
) -> Tensor:
    """As `proxy_norm`, the moments in closed form for ReLU, else by `rule`, `hermite()`."""
    a, b = table_of(learned)
    if isinstance(act, nn.ReLU):
        moments = relu_moments(a, b)
    else:
        moments = weighted_moments(act, a, b, rule[0], rule[1])
    return composed(x, learned, moments, ones, act, groups, eps, proxy_eps)


def composed(
    x: Tensor,
    learned: Learned,
    moments: tuple[Tensor, Tensor],
    ones: Tensor,
    act: nn.Module,
    groups: int,
    eps: float,
    proxy_eps: float,
) -> Tensor:
    """The layer from mean and variance of φ(u), its backward left to autograd."""
    mean, var = moments
    scale = torch.rsqrt(var + proxy_eps)
    y = act(group_norm(x, groups, learned.gamma, learned.beta, eps))
    zeros = torch.zeros_like(ones)  # the mean as running_mean would get no gradient
    return torch.batch_norm(y, scale, -mean * scale, zeros, ones, False, 0.0, 0.0, False)


def table_of(learned: Learned) -> tuple[Tensor, Tensor]:
    """Slope and offset of u = a·ξ + b."""
    gamma, beta, g, b = learned
    return torch.addcmul(gamma, gamma, g), torch.addcmul(beta, gamma, b)


def relu_moments(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Mean b·Φ(b/a) + a·φ(b/a) and variance of ReLU(a·ξ + b); a counts as |a|."""
    a = a.abs().clamp(min=1e-12)  # gamma = 0 (zero-initialised) leaves a constant, not a NaN
    t = b / a
    cdf = torch.special.ndtr(t)
    pdf = torch.exp(-0.5 * t.square()) * (1 / math.sqrt(2 * math.pi))
    mean = b * cdf + a * pdf
    second = (a.square() + b.square()) * cdf + a * b * pdf
    return mean, (second - mean.square()).clamp(min=0)


def weighted_moments(
    act: nn.Module, a: Tensor, b: Tensor, nodes: Tensor, weights: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Mean and variance of φ(a·ξ + b) by a rule with these nodes and weights."""
    phi = act(torch.addcmul(b, nodes, a))
    mean = (weights * phi).sum(0)  # not a matrix product, which autocast would do in half
    return mean, (weights * (phi - mean).square()).sum(0)
