"""Proxy Normalization with its activation, as an operator of torch with gradients.

The operators are functional, opaque to `torch.compile`, and never make the host wait. For the
backward they keep x, two floats and 1/σ of each sample's groups, and m and s of each channel.
Imports no Triton before a kernel is launched.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from normbench.kernels.fused.activations import code_of
from normbench.kernels.fused.tiles import dense
from normbench.kernels.grouped import check_groups

LARGEST_SAMPLE = 2**31
"""Offsets within a sample's tiles are 32-bit."""


def supported(act: nn.Module | None) -> bool:
    """Whether the kernels apply this activation; None is group norm without a proxy."""
    return code_of(act) is not None


@torch.library.custom_op("normbench::proxy_norm", mutates_args=())
def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    proxy_weight: Tensor | None,
    proxy_bias: Tensor | None,
    act: int,
    groups: int,
    eps: float,
    proxy_eps: float,
    exact: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    from normbench.kernels.fused import proxy_launches as launches

    learned = launches.Learned(weight, bias, proxy_weight, proxy_bias)
    settings = launches.Settings(act, groups, eps, proxy_eps, exact)
    return launches.forward(x, learned, settings)


@_forward.register_fake
def _(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    statistics = x.new_empty((3, x.shape[0] * rest[5]), dtype=torch.float32)
    of_proxy = 0 if rest[1] is None else x.shape[1]
    return torch.empty_like(x), statistics, x.new_empty((2, of_proxy), dtype=torch.float32)


@torch.library.custom_op("normbench::proxy_norm_backward", mutates_args=())
def _backward(
    g: Tensor,
    x: Tensor,
    statistics: Tensor,
    moments: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    proxy_weight: Tensor | None,
    proxy_bias: Tensor | None,
    act: int,
    groups: int,
    exact: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    from normbench.kernels.fused import proxy_launches as launches

    learned = launches.Learned(weight, bias, proxy_weight, proxy_bias)
    settings = launches.Settings(act, groups, 0.0, 0.0, exact)  # the eps are in what was saved
    return launches.backward(g, x, statistics, moments, learned, settings)


@_backward.register_fake
def _(
    g: Tensor, x: Tensor, statistics: Tensor, moments: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    of = [x.new_empty(0) if p is None else torch.empty_like(p) for p in rest[:4]]
    return torch.empty_like(x), of[0], of[1], of[2], of[3]


class _ProxyNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        proxy_weight: Tensor | None,
        proxy_bias: Tensor | None,
        act: int,
        groups: int,
        eps: float,
        proxy_eps: float,
        exact: bool,
    ) -> Tensor:
        learned = (weight, bias, proxy_weight, proxy_bias)
        y, statistics, moments = _forward(x, *learned, act, groups, eps, proxy_eps, exact)
        ctx.save_for_backward(x, statistics, moments, *learned)
        ctx.settings = (act, groups, exact)
        return y  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable  # its own backward is not written: an error, not a wrong number
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, statistics, moments, *learned = ctx.saved_tensors
        found = _backward(dense(g, x), x, statistics, moments, *learned, *ctx.settings)
        of = [None if p is None else d for p, d in zip(learned, found[1:], strict=True)]
        return found[0], *of, None, None, None, None, None


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
            C, only some of beta, g̃ and b̃ are given, or a sample has 2³¹ values.
    """
    _check(x, groups, (bias, proxy_weight, proxy_bias), act)
    parameters = [None if p is None else p.contiguous() for p in (bias, proxy_weight, proxy_bias)]
    y: Tensor = _ProxyNorm.apply(
        dense(x), weight.contiguous(), *parameters, act, groups, eps, proxy_eps, exact
    )
    return y


def _check(x: Tensor, groups: int, of_proxy: tuple[Tensor | None, ...], act: int) -> None:
    if x.shape[0] == 0:
        raise ValueError(f"the batch is empty: input of shape {tuple(x.shape)}")
    if x.shape[1] % groups:
        raise ValueError(f"{groups} groups do not divide {x.shape[1]} channels")
    check_groups(x, groups)
    if x.shape[1:].numel() >= LARGEST_SAMPLE:
        raise ValueError(f"a sample has 2³¹ values or more: input of shape {tuple(x.shape)}")
    given = sum(p is not None for p in of_proxy)
    if given not in (0, len(of_proxy)) or (given == 0 and act):
        raise ValueError(
            "the proxy needs bias, proxy_weight and proxy_bias; without it there is no activation"
        )
