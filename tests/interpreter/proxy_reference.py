"""Proxy Normalization by its equations in float64, the eager method in float32, and the bar.

A kernel passes if its error against float64 on the same, quantised, input is at most twice that of
the eager method, plus one unit in the last place of the output. Sums over the batch, which the
parameters' gradients are, are granted the rounding of their float32 terms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from batch_reference import ACTIVATIONS, KINKS, per_channel
from torch import Tensor, nn

from normbench.kernels import proxy as eager_kernels
from normbench.kernels.fused import proxy_norm as kernels
from normbench.kernels.grouped import group_norm

EPS, PROXY_EPS = 1e-5, 0.03
NAMES = ("y", "dx", "d_weight", "d_bias", "d_proxy_weight", "d_proxy_bias")
RELU = 1

MODULES: list[nn.Module] = [
    nn.Identity(), nn.ReLU(), nn.SiLU(), nn.GELU(), nn.GELU(approximate="tanh"), nn.Hardswish(),
]  # fmt: skip
"""The activations by code."""


@dataclass
class Case:
    """Input, gradient of the output and parameters (one, or four); what is fixed for the layer."""

    x: Tensor
    g: Tensor
    parameters: list[Tensor]
    act: int
    groups: int
    exact: bool

    def leaves(self, dtype: torch.dtype) -> list[Tensor]:
        wide = torch.float64 if dtype is torch.float64 else torch.float32
        found = [self.x.to(dtype), *(p.to(wide) for p in self.parameters)]
        return [t.detach().clone().requires_grad_() for t in found]


def case(shape, last, groups, act=RELU, dtype=torch.float32, spread=(0.0, 1.0), exact=False,
         proxy=True) -> Case:  # fmt: skip
    generator = torch.Generator(torch.get_default_device()).manual_seed(5)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    def laid_out(t: Tensor) -> Tensor:
        return t.movedim(1, -1).contiguous().movedim(-1, 1) if last else t

    x = laid_out((normal(*shape) * spread[1] + spread[0]).to(dtype))
    channels = shape[1]
    parameters = [normal(channels) * 0.4 + 1]
    if proxy:
        parameters += [normal(channels) * scale for scale in (1, 0.2, 0.3)]
    return Case(x, laid_out(normal(*shape).to(dtype)), parameters, act, groups, exact)


def moments(a: Tensor, b: Tensor, act: int, exact: bool) -> tuple[Tensor, Tensor]:
    """Mean and variance of φ(a·ξ + b)."""
    if exact and act == RELU:
        a = a.abs()
        cdf = torch.special.ndtr(b / a)
        pdf = torch.exp(-0.5 * (b / a).square()) / math.sqrt(2 * math.pi)
        mean = b * cdf + a * pdf
        return mean, (a.square() + b.square()) * cdf + a * b * pdf - mean.square()
    if exact:
        rule = np.polynomial.hermite_e.hermegauss(32)
        xi, weight = (torch.tensor(v)[:, None] for v in rule)
        weight = weight / weight.sum()
    else:
        xi = torch.special.ndtri((torch.arange(200, dtype=torch.float64) + 0.5) / 200)[:, None]
        weight = torch.full_like(xi, 1 / 200)
    phi = ACTIVATIONS[act](a * xi + b)
    mean = (weight * phi).sum(0)
    return mean, (weight * (phi - mean).square()).sum(0)


def normalized(x: Tensor, groups: int) -> Tensor:
    rows = x.reshape(x.shape[0], groups, -1)
    centred = rows - rows.mean(-1, keepdim=True)
    std = torch.sqrt(centred.square().mean(-1, keepdim=True) + EPS)
    return (centred / std).reshape(x.shape)


def plain(case: Case, x: Tensor, gamma: Tensor, *more: Tensor) -> Tensor:
    """The equations."""
    y = normalized(x, case.groups) * per_channel(gamma, x)
    if not more:
        return y
    beta, g, b = more
    m, v = moments(gamma * (1 + g), gamma * b + beta, case.act, case.exact)
    out = ACTIVATIONS[case.act](y + per_channel(beta, x)) - per_channel(m, x)
    return out / torch.sqrt(per_channel(v, x) + PROXY_EPS)


def eager(case: Case, x: Tensor, gamma: Tensor, *more: Tensor) -> Tensor:
    """The method's eager kernels."""
    if not more:
        return group_norm(x, case.groups, gamma, None, EPS)
    kernel = eager_kernels.exact_proxy_norm if case.exact else eager_kernels.proxy_norm
    nodes = torch.stack(eager_kernels.hermite()) if case.exact else eager_kernels.quantiles()
    y = kernel(
        x.float(), eager_kernels.Learned(gamma, *more), nodes.float(), torch.ones_like(gamma),
        MODULES[case.act], case.groups, EPS, PROXY_EPS,
    )  # fmt: skip
    return y.to(x.dtype)


def fused(case: Case, x: Tensor, gamma: Tensor, *more: Tensor) -> Tensor:
    y = kernels.proxy_norm(
        x, gamma, *(more or (None, None, None)), case.act, case.groups, EPS, PROXY_EPS, case.exact
    )
    assert (y.dtype, y.stride()) == (x.dtype, case.x.stride())
    return y


def run(function, case: Case, dtype: torch.dtype, g: Tensor | None = None) -> list[Tensor]:
    """y and the gradients of x and the parameters."""
    leaves = case.leaves(dtype)
    y = function(case, *leaves)
    y.backward((case.g if g is None else g).to(dtype))
    return [y.detach(), *(t.grad for t in leaves)]


def without_kinks(case: Case) -> Case:
    """No gradient arrives where φ′ jumps: which side a rounded z is on decides nothing then."""
    x, gamma, *more = case.leaves(torch.float64)
    if more:
        z = normalized(x, case.groups) * per_channel(gamma, x) + per_channel(more[0], x)
        near = torch.zeros_like(z, dtype=torch.bool)
        for kink in KINKS.get(case.act, ()):
            near |= (z.detach() - kink).abs() < 0.02
        case.g = torch.where(near, 0, case.g)
    return case


def assert_as_exact_as_eager(case: Case, found: list[Tensor] | None = None) -> None:
    """The bar of this file's docstring; `found` by default from the kernels."""
    found = run(fused, case, case.x.dtype) if found is None else found
    exact = run(plain, case, torch.float64)
    torchs = run(eager, case, case.x.dtype)
    values = case.x.numel() / case.x.shape[1]
    for name, ours, ref, theirs in zip(NAMES, found, exact, torchs, strict=False):
        bar = 2 * (theirs.double() - ref).abs().max()
        if name in ("y", "dx"):
            bar = bar + torch.finfo(case.x.dtype).eps * ref.abs()
        else:
            bar = bar + torch.finfo(torch.float32).eps * math.sqrt(values) * (1 + ref.abs())
        error = (ours.double() - ref).abs()
        assert (error <= bar).all(), (
            f"{name}: error {float(error.max()):.3g}, the eager method's is at most "
            f"{float((theirs.double() - ref).abs().max()):.3g}"
        )
