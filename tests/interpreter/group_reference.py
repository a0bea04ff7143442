"""Group norm and its activation: torch's in float64, the eager method, and ours, for one case.

The bar is batch_reference's: at most twice the error of the eager method in the same type, and a
unit in the last place.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from batch_reference import (
    EPS,
    Layer,
    assert_close_as_torch,
    run,
    wide,
    without_kinks,
)
from torch import Tensor
from torch.nn import functional as F

from normbench.kernels.fused import group_norm as kernels
from normbench.kernels.grouped import group_norm

Z = Callable[[Tensor, Tensor | None, Tensor | None, Tensor | None], Tensor]


def plain_z(groups: int) -> Z:
    """torch's, for float64."""
    return lambda x, _, w, b: F.group_norm(x, groups, w, b, EPS)


def eager_z(groups: int) -> Z:
    """The eager method's, in the type of x."""
    return lambda x, _, w, b: group_norm(x, groups, w, b, EPS)


def fused(layer: Layer, groups: int, act: int, g: Tensor | None = None) -> list[Tensor | None]:
    """y and the gradients of x, of no residual, of weight and bias, by the kernels."""
    leaves = layer.as_type(layer.x.dtype)
    x, _, weight, bias = leaves
    assert x is not None
    y = kernels.group_norm(x, weight, bias, groups, EPS, act)
    assert (y.dtype, y.stride()) == (layer.x.dtype, layer.x.stride())
    y.backward(layer.g if g is None else g)
    return [y.detach(), *(None if t is None else t.grad for t in leaves)]


def assert_as_exact_as_eager(layer: Layer, groups: int, act: int) -> None:
    """The bar of this file's docstring."""
    layer = without_kinks(layer, act, plain_z(groups))
    exact = run(plain_z(groups), layer, act, torch.float64)
    eager = run(eager_z(groups), layer, act, layer.x.dtype)
    types = [layer.x.dtype] * 3 + [torch.float32] * 2
    assert_close_as_torch(wide(fused(layer, groups, act)), exact, eager, types)
