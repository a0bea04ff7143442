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
from normbench.kernels.fused.library import operator


def _forward_like(x: Tensor, residual: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    active, act, keep_bits = rest[5], rest[-2], rest[-1]
    return launches.outputs(x, act, residual is not None and keep_bits, active is not None)


@operator(
    "batch_norm", _forward_like, mutates=("running_mean", "running_var", "step", "active", "newest")
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
    """Training forward: y, the rows of `saved` and the mask of bits (`batch_launches.forward`).

    With `active` and `newest` a Batch Renorm's, which leaves `step` as it is.
    """
    renorm = None
    if step is not None and active is not None and newest is not None:
        rmax, dmax, hold, rfull, dfull = limits
        renorm = Renorm(step, active, newest, (rmax, dmax, hold, rfull, dfull))
    return launches.forward(
        x, residual, weight, bias, running_mean, running_var, momentum, eps, act, keep_bits,
        step, renorm,
    )  # fmt: skip


def _evaluate_like(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    keep = rest[-1]
    saved = x.new_empty((5 if keep else 0, x.shape[1]), dtype=torch.float32)
    return torch.empty_like(x), saved


@operator("batch_norm_evaluate", _evaluate_like)
def evaluate(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    eps: float,
    act: int,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """Evaluation by the running values (`batch_launches.evaluate`)."""
    return launches.evaluate(x, residual, weight, bias, running_mean, running_var, eps, act, keep)


def _backward_like(g: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    act, of_residual, of_affine, _ = rest[-4:]
    return launches.gradients(x, act, of_residual, of_affine)


@operator("batch_norm_backward", _backward_like)
def backward(
    g: Tensor,
    x: Tensor,
    saved: Tensor,
    residual: Tensor | None,
    bits: Tensor,
    act: int,
    of_residual: bool,
    of_affine: bool,
    evaluating: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients asked for, from what the forward saved (`batch_launches.backward`)."""
    return launches.backward(g, x, saved, residual, bits, act, of_residual, of_affine, evaluating)
