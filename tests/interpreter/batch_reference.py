"""Batch norm by its equations in float64, torch's own in the same type, and the bar between them.

A kernel passes if its error against float64 on the same, quantised, input is at most twice that of
torch's native layers in the same type, plus one unit in the last place of the output. Sums over the
batch are granted the rounding of their float32 terms: torch adds them up in float64 on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

ACTIVATIONS: list[Callable[[Tensor], Tensor]] = [
    lambda z: z, F.relu, F.silu, F.gelu, lambda z: F.gelu(z, approximate="tanh"), F.hardswish,
]  # fmt: skip
"""By code."""

KINKS = {1: (0.0,), 5: (-3.0, 3.0)}
"""Where φ′ jumps."""

EPS = 1e-5


@dataclass
class Layer:
    """Input and parameters of one case, in the types the kernel gets."""

    x: Tensor
    residual: Tensor | None
    weight: Tensor | None
    bias: Tensor | None
    g: Tensor

    def tensors(self) -> list[Tensor | None]:
        return [self.x, self.residual, self.weight, self.bias]

    def as_type(self, dtype: torch.dtype) -> list[Tensor | None]:
        """Fresh leaves of all four in a type; parameters stay wide."""
        wide = [self.x, self.residual]
        leaves = [None if t is None else t.detach().to(dtype) for t in wide]
        of = torch.float64 if dtype is torch.float64 else torch.float32
        leaves += [None if t is None else t.detach().to(of) for t in (self.weight, self.bias)]
        return [None if t is None else t.clone().requires_grad_() for t in leaves]


def per_channel(values: Tensor, like: Tensor) -> Tensor:
    return values.reshape(1, -1, *[1] * (like.dim() - 2))


def plain_z(x: Tensor, residual: Tensor | None, w: Tensor | None, b: Tensor | None) -> Tensor:
    """gamma·(x − μ)/√(σ² + eps) + beta + residual, from sums alone."""
    dims = [0, *range(2, x.dim())]
    mean = x.mean(dims, keepdim=True)
    var = (x - mean).square().mean(dims, keepdim=True)
    z = (x - mean) / torch.sqrt(var + EPS)
    z = z if w is None else z * per_channel(w, x)
    z = z if b is None else z + per_channel(b, x)
    return z if residual is None else z + residual


def native_z(x: Tensor, residual: Tensor | None, w: Tensor | None, b: Tensor | None) -> Tensor:
    z = F.batch_norm(x, None, None, w, b, True, 0.0, EPS)
    return z if residual is None else z + residual


def run(
    z_of: Callable[..., Tensor], layer: Layer, act: int, dtype: torch.dtype
) -> list[Tensor | None]:
    """y and the gradients of x, residual, weight and bias, in float64."""
    leaves = layer.as_type(dtype)
    y = ACTIVATIONS[act](z_of(*leaves))
    y.backward(layer.g.to(dtype))
    return wide([y, *(None if t is None else t.grad for t in leaves)])


def wide(found: list[Tensor | None]) -> list[Tensor | None]:
    return [None if t is None else t.detach().double() for t in found]


def without_kinks(layer: Layer, act: int, z_of: Callable[..., Tensor] = plain_z) -> Layer:
    """No gradient arrives where φ′ jumps: which side a rounded z is on decides nothing then."""
    z = z_of(*layer.as_type(torch.float64)).detach()
    near = torch.zeros_like(z, dtype=torch.bool)
    for kink in KINKS.get(act, ()):
        near |= (z - kink).abs() < 0.02
    return Layer(*layer.tensors(), torch.where(near, 0, layer.g.double()).to(layer.g.dtype))


def assert_close_as_torch(
    found: list[Tensor | None],
    exact: list[Tensor | None],
    native: list[Tensor | None],
    types: list[torch.dtype],
) -> None:
    """The bar of this file's docstring, for y, dx, the residual's gradient, dgamma and dbeta."""
    names = ("y", "dx", "d_residual", "d_weight", "d_bias")
    for name, ours, ref, torchs, dtype in zip(names, found, exact, native, types, strict=True):
        assert (ours is None) == (ref is None), name
        if ours is None or ref is None or torchs is None:
            continue
        last_place = ref.abs()
        if name in ("d_weight", "d_bias"):
            last_place = last_place.max() + _summed(exact)
        bar = 2 * (torchs - ref).abs().max() + torch.finfo(dtype).eps * last_place
        error = (ours - ref).abs()
        worst = int((error - bar).argmax()) if error.numel() else 0
        assert (error <= bar).all(), (
            f"{name}: error {float(error.flatten()[worst]):.3g}, torch's is at most "
            f"{float((torchs - ref).abs().max()):.3g}"
        )


def _summed(exact: list[Tensor | None]) -> float:
    """√n, what the roundings of n terms of size one, dz and x̂, add up to."""
    y = exact[0]
    assert y is not None
    return (y.numel() / y.shape[1]) ** 0.5
