"""Every batch norm kernel, interpreted, against float64: hostile shapes, types and spreads."""

from __future__ import annotations

import itertools

import pytest
import torch
from batch_reference import (
    ACTIVATIONS,
    EPS,
    Layer,
    assert_close_as_torch,
    native_z,
    plain_z,
    run,
    wide,
    without_kinks,
)
from torch import Tensor

from normbench.kernels.fused import batch_norm as kernels
from normbench.kernels.fused.tiles import View, looped_cut, resident_cut, view

# Lanes outside of a tile hold no values of x: what is computed from them is not stored.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")

FIRST, LAST = torch.contiguous_format, torch.channels_last
RESIDENT, LOOPED, STREAMING = "resident", "looped", "streaming"
GEOMETRIES = [
    ((2, 3, 56, 56), FIRST, RESIDENT), ((3, 3, 56, 56), FIRST, LOOPED),
    ((12, 3, 56, 56), FIRST, STREAMING), ((3, 3, 56, 56), LAST, STREAMING),
    ((2, 63, 7, 7), FIRST, RESIDENT), ((4, 63, 7, 7), LAST, RESIDENT),
    ((16, 65, 7, 7), LAST, LOOPED), ((45, 65, 7, 7), LAST, STREAMING),
    ((2, 72, 14, 14), LAST, RESIDENT), ((11, 72, 14, 14), LAST, STREAMING),
    ((170, 8, 14, 14), FIRST, STREAMING), ((4, 2048, 1, 1), FIRST, RESIDENT),
    ((2, 1, 14, 14), FIRST, RESIDENT), ((40, 1, 14, 14), FIRST, LOOPED),
    ((200, 5), FIRST, RESIDENT), ((4, 6, 50), FIRST, RESIDENT),
    ((2, 3, 4, 5, 6), torch.channels_last_3d, RESIDENT),
]  # fmt: skip
"""Shape, memory format, and how the kernels go over it."""

SPREADS = [(0.0, 1.0), (10.0, 1.0), (1e4, 1.0), (100.0, 0.01)]
"""Mean and standard deviation of the input."""

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def forms() -> list[tuple[int, ...]]:
    """A geometry with type, activation, residual and spread: three each, all of them covered."""
    rest = itertools.cycle(
        (dtype, act, residual)
        for dtype, residual in itertools.product(range(3), (1, 0))
        for act in range(len(ACTIVATIONS))
    )
    spreads = itertools.cycle(range(len(SPREADS)))
    found = []
    for geometry, _ in itertools.product(range(len(GEOMETRIES)), range(3)):
        for _ in range(5):  # strides of the cycles that have no common divisor
            dtype, act, residual = next(rest)
        found.append((geometry, dtype, act, residual, next(spreads)))
    return found


def form_of(x: View) -> str:
    if resident_cut(x) is not None:
        return RESIDENT
    return LOOPED if looped_cut(x) is not None else STREAMING


def case(shape, memory_format, dtype, residual, spread, affine=True) -> Layer:
    generator = torch.Generator(torch.get_default_device()).manual_seed(7)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    mean, std = spread
    x = (normal(*shape) * std + mean).to(dtype).contiguous(memory_format=memory_format)
    other = normal(*shape).to(dtype).contiguous(memory_format=memory_format) if residual else None
    channels = shape[1]
    weight = normal(channels) * 0.5 + 1 if affine else None
    bias = normal(channels) if affine else None
    g = normal(*shape).to(dtype).contiguous(memory_format=memory_format)
    return Layer(x, other, weight, bias, g)


def fused(layer: Layer, act: int, g: Tensor | None = None) -> list[Tensor | None]:
    leaves = layer.as_type(layer.x.dtype)
    y = kernels.batch_norm(*leaves, None, None, 0.0, EPS, act)
    assert y.dtype == layer.x.dtype
    assert y.stride() == layer.x.stride()
    y.backward(layer.g if g is None else g)
    return [y.detach(), *(None if t is None else t.grad for t in leaves)]


def types(layer: Layer) -> list[torch.dtype]:
    return [layer.x.dtype] * 3 + [torch.float32] * 2


@pytest.mark.parametrize(("geometry", "dtype", "act", "residual", "spread"), forms())
def test_forward_and_backward(geometry, dtype, act, residual, spread) -> None:
    shape, memory_format, form = GEOMETRIES[geometry]
    layer = case(shape, memory_format, DTYPES[dtype], residual, SPREADS[spread])
    assert form_of(view(layer.x)) == form
    layer = without_kinks(layer, act)
    exact = run(plain_z, layer, act, torch.float64)
    native = run(native_z, layer, act, layer.x.dtype)
    found = wide(fused(layer, act))
    assert_close_as_torch(found, exact, native, types(layer))


def test_the_fuzz_covers_every_activation_type_and_spread() -> None:
    found = forms()
    for column, choices in ((1, 3), (2, len(ACTIVATIONS)), (3, 2), (4, len(SPREADS))):
        assert {form[column] for form in found} == set(range(choices))
    kinds = {(GEOMETRIES[f[0]][2], f[2], f[3]) for f in found}
    assert len(kinds) >= 26  # of 36: how, activation, residual
