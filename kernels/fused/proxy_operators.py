"""Normalization of each sample's groups as operators of torch, with gradients.

Proxy Normalization and group norm are the same operators: without the proxy's parameters they give
φ(gamma·y + beta). The operators are functional, opaque to `torch.compile`, and never make the host
wait. For the backward they keep x, two floats and 1/σ of each sample's groups, and m and s of each
channel. Imports no Triton before a kernel is launched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from normbench.kernels.fused.library import operator
from normbench.kernels.fused.tiles import dense
from normbench.kernels.grouped import check_groups

LARGEST_SAMPLE = 2**31
"""Offsets within a sample's tiles are 32-bit."""


def _forward_like(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    statistics = x.new_empty((3, x.shape[0] * rest[5]), dtype=torch.float32)
    of_proxy = 0 if rest[2] is None else x.shape[1]
    return torch.empty_like(x), statistics, x.new_empty((2, of_proxy), dtype=torch.float32)


@operator("sample_norm", _forward_like)
def forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    proxy_weight: Tensor | None,
    proxy_bias: Tensor | None,
    act: int,
    groups: int,
    eps: float,
    proxy_eps: float,
    exact: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of a dense x: y, the rows of statistics and of moments (`proxy_launches.forward`)."""
    from normbench.kernels.fused import proxy_launches as launches

    learned = launches.Learned(weight, bias, proxy_weight, proxy_bias)
    settings = launches.Settings(act, groups, eps, proxy_eps, exact)
    return launches.forward(x, learned, settings)


def _backward_like(
    g: Tensor, x: Tensor, statistics: Tensor, moments: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    of = [x.new_empty(0) if p is None else torch.empty_like(p) for p in rest[:4]]
    return torch.empty_like(x), of[0], of[1], of[2], of[3]


@operator("sample_norm_backward", _backward_like)
def backward(
    g: Tensor,
    x: Tensor,
    statistics: Tensor,
    moments: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    proxy_weight: Tensor | None,
    proxy_bias: Tensor | None,
    act: int,
    groups: int,
    exact: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x and the four parameters, empty where there is none; g has x's layout."""
    from normbench.kernels.fused import proxy_launches as launches

    learned = launches.Learned(weight, bias, proxy_weight, proxy_bias)
    settings = launches.Settings(act, groups, 0.0, 0.0, exact)  # the eps are in what was saved
    return launches.backward(g, x, statistics, moments, learned, settings)


class _SampleNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
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
        y, statistics, moments = forward(x, *learned, act, groups, eps, proxy_eps, exact)
        ctx.save_for_backward(x, statistics, moments, *learned)
        ctx.settings = (act, groups, exact)
        return y  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable  # its own backward is not written: an error, not a wrong number
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, statistics, moments, *learned = ctx.saved_tensors
        found = backward(dense(g, x), x, statistics, moments, *learned, *ctx.settings)
        of = [None if p is None else d for p, d in zip(learned, found[1:], strict=True)]
        return found[0], *of, None, None, None, None, None


def normalized(
    x: Tensor,
    learned: Sequence[Tensor | None],
    act: int,
    groups: int,
    eps: float,
    proxy_eps: float = 0.0,
    exact: bool = False,
) -> Tensor:
    """The operators with gradients, on tensors of any strides; `learned` are the four parameters.

    Raises:
        ValueError: if the batch is empty, a group pools a single value, the groups do not divide
            C, a parameter has not C values, or a sample has 2³¹.
    """
    _check(x, groups, learned)
    parameters = [None if p is None else p.contiguous() for p in learned]
    y: Tensor = _SampleNorm.apply(dense(x), *parameters, act, groups, eps, proxy_eps, exact)
    return y


def _check(x: Tensor, groups: int, learned: Sequence[Tensor | None]) -> None:
    if x.shape[0] == 0:
        raise ValueError(f"the batch is empty: input of shape {tuple(x.shape)}")
    if x.shape[1] % groups:
        raise ValueError(f"{groups} groups do not divide {x.shape[1]} channels")
    check_groups(x, groups)
    for p in learned:
        if p is not None and p.shape != (x.shape[1],):
            raise ValueError(f"{x.shape[1]} channels do not go with {tuple(p.shape)} values")
    if x.shape[1:].numel() >= LARGEST_SAMPLE:
        raise ValueError(f"a sample has 2³¹ values or more: input of shape {tuple(x.shape)}")
