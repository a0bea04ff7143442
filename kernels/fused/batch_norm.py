"""Batch norm and Batch Renorm with activation and residual, and their gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from normbench.kernels.fused import batch_operators as operators
from normbench.kernels.fused.activations import IDENTITY
from normbench.kernels.fused.batch_launches import Renorm
from normbench.kernels.fused.tiles import dense


class _Trained(torch.autograd.Function):
    """By the batch's statistics."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        running: tuple[Tensor | None, Tensor | None],
        counted: Tensor | None,
        renorm: Renorm | None,
        momentum: float,
        eps: float,
        act: int,
        keep_bits: bool,
    ) -> Tensor:
        counters = (renorm.step, renorm.active, renorm.newest) if renorm else (counted, None, None)
        y, saved, bits = operators.forward(
            x, residual, weight, bias, *running, *counters,
            [] if renorm is None else list(renorm.limits), momentum, eps, act, keep_bits,
        )  # fmt: skip
        _keep(ctx, x, residual, saved, bits, (weight, bias), act, evaluating=False)
        return y  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable  # its own backward is not written: an error, not a wrong number
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return *_gradients(ctx, g), *(None,) * 7


class _Evaluated(torch.autograd.Function):
    """By the running values, which get no gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        var: Tensor,
        eps: float,
        act: int,
    ) -> Tensor:
        y, saved = operators.evaluate(x, residual, weight, bias, mean, var, eps, act, True)
        _keep(ctx, x, residual, saved, x.new_empty(0), (weight, bias), act, evaluating=True)
        return y  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable  # as above
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return *_gradients(ctx, g), None, None, None, None


def _keep(
    ctx: Any,
    x: Tensor,
    residual: Tensor | None,
    saved: Tensor,
    bits: Tensor,
    parameters: tuple[Tensor | None, Tensor | None],
    act: int,
    evaluating: bool,
) -> None:
    """What the backward needs: the residual only where neither z nor its sign is known without."""
    recomputed = residual is not None and act != IDENTITY and not bits.numel()
    ctx.save_for_backward(x, saved, bits, residual if recomputed else None)
    ctx.types = tuple(None if p is None else p.dtype for p in parameters)
    ctx.act, ctx.with_residual, ctx.evaluating = act, residual is not None, evaluating


def _gradients(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
    x, saved, bits, residual = ctx.saved_tensors
    g = dense(g, x)
    _, of_residual, *of_affine = ctx.needs_input_grad[:4]
    dx, d_weight, d_bias, d_residual = operators.backward(
        g, x, saved, residual, bits, ctx.act, of_residual, any(of_affine), ctx.evaluating
    )
    if ctx.act == IDENTITY:
        d_residual = g
    found = (dx, d_residual if of_residual else None)
    of_parameters = [
        grad.to(dtype) if needed else None
        for grad, dtype, needed in zip((d_weight, d_bias), ctx.types, of_affine, strict=True)
    ]
    return *found, *of_parameters


def batch_norm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    momentum: float,
    eps: float,
    act: int = IDENTITY,
    counted: Tensor | None = None,
) -> Tensor:
    r"""φ(gamma·(x − μ)/√(σ² + eps) + beta + residual) by the batch's statistics.

    Moves the running values where they are given: running_var by the unbiased variance.

    Args:
        x: N,C,* input of 2 to 5 dims, float32, float16 or bfloat16.
        residual: added before the activation; of x's shape and type.
        weight: gamma, C values.
        bias: beta, C values.
        running_mean: C values.
        running_var: C values.
        momentum: weight of the new batch in the running values.
        eps: added to the variance.
        act: code of φ (`activations.code_of`).
        counted: training forwards so far, one int64, raised by one.

    Raises:
        ValueError: if a channel has fewer than two values, or a parameter or running value has not
            C of them.
    """
    running = (running_mean, running_var)
    return _train(x, residual, weight, bias, running, counted, None, momentum, eps, act)


def batch_renorm(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    renorm: Renorm,
    momentum: float,
    eps: float,
    act: int = IDENTITY,
) -> Tensor:
    r"""φ(gamma·((x − μ)/σ·r + d) + beta + residual), σ = √(σ² + eps), r and d without gradient.

    r = clip(σ/σ_run, 1/rmax, rmax) and d = clip((μ − running_mean)/σ_run, −dmax, dmax) by the
    running values before they are moved, σ_run = √(running_var + eps); what is averaged is σ. rmax
    and dmax by the schedule in `renorm`, whose step is read on the device and left as it is.

    Raises:
        ValueError: as `batch_norm`.
    """
    running = (running_mean, running_var)
    return _train(x, residual, weight, bias, running, None, renorm, momentum, eps, act)


def _train(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    running: tuple[Tensor | None, Tensor | None],
    counted: Tensor | None,
    renorm: Renorm | None,
    momentum: float,
    eps: float,
    act: int,
) -> Tensor:
    if x.numel() < 2 * x.shape[1]:
        raise ValueError(
            "batch statistics need at least 2 values per channel (N·H·W) to have a variance: "
            f"input of shape {tuple(x.shape)}"
        )
    given = _prepared(x, residual, weight, bias, running)
    keep_bits = _differentiated(given)
    y: Tensor = _Trained.apply(*given, running, counted, renorm, momentum, eps, act, keep_bits)
    return y


def evaluated(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    eps: float,
    act: int = IDENTITY,
) -> Tensor:
    """As `batch_norm`, by the running values: one launch."""
    given = _prepared(x, residual, weight, bias, (running_mean, running_var))
    of = (*given, running_mean, running_var, eps, act)
    y: Tensor = (
        _Evaluated.apply(*of) if _differentiated(given) else operators.evaluate(*of, False)[0]
    )
    return y


Given = tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]


def _prepared(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    running: tuple[Tensor | None, Tensor | None],
) -> Given:
    """All without gaps, the residual in x's layout."""
    for t in (weight, bias, *running):
        if t is not None and t.shape != (x.shape[1],):
            raise ValueError(f"{x.shape[1]} channels do not go with {tuple(t.shape)} values")
    if any(t is not None and not t.is_contiguous() for t in running):
        raise ValueError("running values are moved in place: they have to be contiguous")
    x = dense(x)
    residual = None if residual is None else dense(residual, x)
    parameters = [None if p is None else p.contiguous() for p in (weight, bias)]
    return x, residual, parameters[0], parameters[1]


def _differentiated(given: Given) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given)
