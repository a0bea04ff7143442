"""Batch norm's kernels as operators of torch, each with a fake for compilers.

They are opaque to `torch.compile` and never make the host wait: running values, the schedule's step
and the statistics stay on the device, so that they can be captured in CUDA graphs. They take
tensors without gaps, of one layout; `batch_norm.py` makes them so and adds gradients.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from normbench.kernels.fused import batch_launches as launches
from normbench.kernels.fused.batch_launches import Renorm


@torch.library.custom_op(
    "normbench::batch_norm", mutates_args=("running_mean", "running_var", "active", "newest")
)
def forward(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    step: Tensor | None,
    active: Tensor | None,
    newest: Tensor | None,
    limits: Sequence[float],
    momentum: float,
    eps: float,
    act: int,
    keep_bits: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Training forward: y, the rows of `saved` and the mask of bits (`batch_launches.forward`)."""
    renorm = None
    if step is not None and active is not None and newest is not None:
        rmax, dmax, hold, rfull, dfull = limits
        renorm = Renorm(step, active, newest, (rmax, dmax, hold, rfull, dfull))
    return launches.forward(
        x, residual, weight, bias, running_mean, running_var, momentum, eps, act, keep_bits,
        renorm,
    )  # fmt: skip


@forward.register_fake
def _(x: Tensor, residual: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    step, act, keep_bits = rest[4], rest[-2], rest[-1]
    return launches.outputs(x, act, residual is not None and keep_bits, step is not None)


@torch.library.custom_op("normbench::batch_norm_evaluate", mutates_args=())
def evaluate(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    eps: float,
    act: int,
) -> Tensor:
    """Evaluation by the running values (`batch_launches.evaluate`)."""
    return launches.evaluate(x, residual, weight, bias, running_mean, running_var, eps, act)


@evaluate.register_fake
def _(x: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op("normbench::batch_norm_backward", mutates_args=())
def backward(
    g: Tensor,
    x: Tensor,
    saved: Tensor,
    residual: Tensor | None,
    bits: Tensor,
    act: int,
    with_residual: bool,
    evaluating: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """All gradients, from what the forward saved (`batch_launches.backward`)."""
    return launches.backward(g, x, saved, residual, bits, act, with_residual, evaluating)


@backward.register_fake
def _(
    g: Tensor,
    x: Tensor,
    saved: Tensor,
    residual: Tensor | None,
    bits: Tensor,
    act: int,
    with_residual: bool,
    evaluating: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return launches.gradients(x, act, with_residual)
