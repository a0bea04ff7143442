"""Proxy Normalization with its activation: one pass to read, one to write, and gradients.

Imports no Triton before a kernel is launched.
"""

from __future__ import annotations

from torch import Tensor, nn

from normbench.kernels.fused.activations import code_of
from normbench.kernels.fused.proxy_operators import normalized


def supported(act: nn.Module | None) -> bool:
    """Whether the kernels apply this activation; None is group norm without a proxy."""
    return code_of(act) is not None


def proxy_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    proxy_weight: Tensor | None,
    proxy_bias: Tensor | None,
    act: int,
    groups: int,
    eps: float,
    proxy_eps: float,
    exact: bool = False,
) -> Tensor:
    r"""(φ(gamma·y + beta) − E φ(u))/√(Var φ(u) + proxy_eps), y the group norm of x.

    u = gamma·((1 + g̃)·ξ + b̃) + beta with ξ standard normal. Training and evaluation are the same.
    The result has x's type and memory format; statistics and moments are float32.

    Args:
        x: N,C,* input of 2 to 5 dims, float32, float16 or bfloat16.
        weight: gamma, C values.
        bias: beta, C values; None, and g̃ and b̃ with it: no proxy, gamma·y.
        proxy_weight: g̃, C values.
        proxy_bias: b̃, C values.
        act: code of φ (`activations.code_of`).
        groups: of the group norm; divides C. 1 is layer norm.
        eps: added to the group norm's variance.
        proxy_eps: added to the proxy's variance.
        exact: moments in closed form for ReLU, else by a 32-point Gauss-Hermite rule, in place of
            200 midpoint quantiles of ξ.

    Raises:
        ValueError: if the batch is empty, a group pools a single value, the groups do not divide
            C, only some of beta, g̃ and b̃ are given, a parameter has not C values, or a sample has
            2³¹.
    """
    of_proxy = (bias, proxy_weight, proxy_bias)
    given = sum(p is not None for p in of_proxy)
    if given not in (0, len(of_proxy)) or (given == 0 and act):
        raise ValueError(
            "the proxy needs bias, proxy_weight and proxy_bias; without it there is no activation"
        )
    return normalized(x, (weight, *of_proxy), act, groups, eps, proxy_eps, exact)
