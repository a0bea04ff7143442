"""Batch norm kernels where others were wrong: strided gradients, running values, evaluation."""

from __future__ import annotations

import copy

import pytest
import torch
import triton
import triton.language as tl
from batch_reference import EPS, assert_close_as_torch, native_z, plain_z, run, wide
from test_batch_norm import FIRST, LAST, case, fused, types
from torch import Tensor, nn
from torch.nn import functional as F

from normbench.kernels.fused import batch_norm as kernels
from normbench.kernels.fused import batch_operators as operators
from normbench.kernels.fused.device import place

SHAPES = [
    ((4, 24, 7, 7), FIRST),
    ((4, 24, 7, 7), LAST),
    ((3, 24, 20, 20), LAST),
    ((65, 3, 12, 12), FIRST),
    ((6, 20, 20, 20), LAST),
    ((230, 2, 12, 12), FIRST),
]
"""Both layouts resident, looped and streaming."""

RELU, SILU = 1, 2

GRADIENTS = {
    "expanded": lambda g: g[:1, :1, :1, :1].expand_as(g),
    "expanded over samples": lambda g: g[:1].expand_as(g),
    "strided": lambda g: torch.stack([g, -g], -1)[..., 0],
    "the other layout": lambda g: g.contiguous(memory_format=LAST if g.is_contiguous() else FIRST),
    "transposed": lambda g: g.transpose(2, 3).contiguous().transpose(2, 3),
}


@pytest.mark.parametrize("kind", GRADIENTS)
@pytest.mark.parametrize(("shape", "memory_format"), SHAPES, ids=str)
def test_gradients_of_any_strides(shape, memory_format, kind) -> None:
    layer = case(shape, memory_format, torch.float32, residual=True, spread=(0.0, 1.0))
    given = GRADIENTS[kind](layer.g)
    same = copy.copy(layer)
    same.g = given.contiguous(memory_format=memory_format)
    found, plain = fused(layer, SILU, given), fused(same, SILU)
    assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))
    exact, native = (
        run(plain_z, same, SILU, torch.float64),
        run(native_z, same, SILU, torch.float32),
    )
    assert_close_as_torch(wide(found), exact, native, types(layer))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("shape", "memory_format"), SHAPES, ids=str)
def test_the_same_bits_every_time(shape, memory_format, dtype) -> None:
    layer = case(shape, memory_format, dtype, residual=True, spread=(10.0, 1.0))
    first, second = fused(layer, RELU), fused(layer, RELU)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(("shape", "memory_format"), SHAPES, ids=str)
def test_a_large_mean_costs_no_digits(shape, memory_format) -> None:
    layer = case(shape, memory_format, torch.float32, residual=False, spread=(1e4, 1.0))
    exact = run(plain_z, layer, 0, torch.float64)[0]
    error = (wide(fused(layer, 0))[0] - exact).abs().max()
    assert error < 3e-6  # (x − mean)·scale + shift, the mean in one float: 7e-5


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize(("shape", "memory_format"), SHAPES, ids=str)
def test_running_values_are_those_of_torch(shape, memory_format, affine) -> None:
    layer = case(shape, memory_format, torch.float32, False, (3.0, 2.0), affine)
    mean, var = torch.full((shape[1],), 0.5), torch.full((shape[1],), 2.0)
    means, variances = mean.double(), var.double()
    for _ in range(2):
        kernels.batch_norm(layer.x, None, layer.weight, layer.bias, mean, var, 0.3, EPS)
        F.batch_norm(layer.x.double(), means, variances, None, None, True, 0.3, EPS)
    torch.testing.assert_close(mean.double(), means, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(var.double(), variances, rtol=1e-6, atol=1e-6)


def test_without_running_values_nothing_is_written() -> None:
    layer = case((4, 24, 7, 7), FIRST, torch.float32, False, (0.0, 1.0))
    before = layer.x.clone()
    y = kernels.batch_norm(layer.x, None, None, None, None, None, 0.1, EPS)
    assert torch.equal(layer.x, before)
    torch.testing.assert_close(y, F.batch_norm(before, None, None, training=True, eps=EPS))


@pytest.mark.parametrize("shape", [(0, 4, 3, 3), (1, 4, 1, 1), (1, 4), (3, 4, 0, 2)], ids=str)
def test_a_batch_without_variance_is_refused(shape) -> None:
    with pytest.raises(ValueError, match="at least 2 values per channel"):
        kernels.batch_norm(torch.ones(shape), None, None, None, None, None, 0.1, EPS)


def test_an_empty_batch_is_evaluated() -> None:
    x = torch.empty(0, 4, 3, 3, requires_grad=True)
    y = kernels.evaluated(x, None, None, None, torch.zeros(4), torch.ones(4), EPS)
    y.sum().backward()
    assert y.shape == x.shape == x.grad.shape


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("act", [0, RELU, SILU])
@pytest.mark.parametrize(("shape", "memory_format"), SHAPES, ids=str)
def test_evaluation_and_its_gradients(shape, memory_format, act, residual) -> None:
    layer = case(shape, memory_format, torch.float32, residual, (1.0, 2.0))
    generator = torch.Generator(torch.get_default_device()).manual_seed(3)
    mean = torch.randn(shape[1], generator=generator)
    var = torch.rand(shape[1], generator=generator) + 0.5

    def z_of(x: Tensor, other: Tensor | None, w: Tensor, b: Tensor) -> Tensor:
        z = F.batch_norm(x, mean.to(x.dtype), var.to(x.dtype), w, b, False, 0.0, EPS)
        return z if other is None else z + other

    leaves = layer.as_type(torch.float32)
    y = kernels.evaluated(*leaves, mean, var, EPS, act)
    y.backward(layer.g)
    found = wide([y, *(None if t is None else t.grad for t in leaves)])
    exact, native = run(z_of, layer, act, torch.float64), run(z_of, layer, act, torch.float32)
    assert_close_as_torch(found, exact, native, types(layer))
    with torch.no_grad():
        assert torch.equal(kernels.evaluated(*leaves, mean, var, EPS, act), y)


def test_channels_of_different_kinds_of_input_come_out_alike() -> None:
    """The same numbers as N,C as N,C,1 and as N,C,1,1, and as rows of a transformer."""
    x = torch.randn(40, 6)
    expected = nn.BatchNorm1d(6)(x).detach()
    for view in (x, x[:, :, None], x[:, :, None, None], x.view(8, 5, 6).movedim(-1, 1)):
        y = kernels.batch_norm(view, None, None, None, None, None, 0.1, EPS)
        assert y.stride() == view.stride()
        found = y.movedim(1, -1).reshape(40, 6)
        torch.testing.assert_close(found, expected)


def test_parameters_of_half_type_get_gradients_of_it() -> None:
    layer = case((4, 24, 7, 7), FIRST, torch.bfloat16, False, (0.0, 1.0))
    weight = layer.weight.bfloat16().requires_grad_()
    kernels.batch_norm(layer.x, None, weight, None, None, None, 0.1, EPS, RELU).sum().backward()
    assert weight.grad.dtype is torch.bfloat16


@pytest.mark.parametrize(("shape", "memory_format"), SHAPES, ids=str)
def test_nan_is_not_hidden(shape, memory_format) -> None:
    x = case(shape, memory_format, torch.float32, False, (0.0, 1.0)).x
    x[0, 1, 0, 0] = float("nan")
    mean, var = torch.zeros(shape[1]), torch.ones(shape[1])
    y = kernels.batch_norm(x, None, None, None, mean, var, 0.1, EPS, RELU)
    others = [c for c in range(shape[1]) if c != 1]
    for values in (y.movedim(1, 0), mean, var):
        assert values[1].isnan().all()
        assert not values[others].isnan().any()


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize(("shape", "memory_format"), SHAPES, ids=str)
def test_the_backward_finds_the_very_relu_mask_of_the_forward(
    shape, memory_format, residual
) -> None:
    layer = case(shape, memory_format, torch.float32, residual, (100.0, 0.01))
    y, *_, d_bias = fused(layer, RELU, torch.ones_like(layer.g))
    assert torch.equal(d_bias, (y > 0).sum((0, 2, 3)).float())


def test_a_parameter_of_any_strides() -> None:
    x = torch.randn(4, 6, 5, 5)
    expanded = torch.tensor([2.0]).expand(6)
    y = kernels.batch_norm(x, None, expanded, None, None, None, 0.1, EPS)
    torch.testing.assert_close(y, 2 * F.batch_norm(x, None, None, training=True, eps=EPS))


def test_wrong_sizes_and_layouts_are_refused() -> None:
    x = torch.randn(4, 6, 5, 5)
    with pytest.raises(ValueError, match="6 channels do not go with"):
        kernels.batch_norm(x, None, torch.ones(5), None, None, None, 0.1, EPS)
    with pytest.raises(ValueError, match="contiguous"):
        kernels.batch_norm(x, None, None, None, torch.ones(12)[::2], None, 0.1, EPS)
    given = [None] * 8 + [[], 0.1, EPS, 0, True]
    with pytest.raises(ValueError, match="without gaps"):
        operators.forward(x[..., ::2], *given)
    with pytest.raises(ValueError, match="one shape and memory format"):
        operators.forward(x, x.contiguous(memory_format=LAST), *given[1:])


def test_a_slice_of_channels_stays_channels_last() -> None:
    x = torch.randn(4, 6, 5, 5).contiguous(memory_format=LAST)[:, :4]
    y = kernels.batch_norm(x, None, None, None, None, None, 0.1, EPS)
    assert y.is_contiguous(memory_format=LAST)
    torch.testing.assert_close(y, F.batch_norm(x, None, None, training=True, eps=EPS))


@triton.jit
def base_of(out, tile, LAST: tl.constexpr):
    base, _, _ = place(tile, 1, 1_000_000_000, 1024, 1024, LAST, 32, 64)
    tl.store(out, base)


def test_offsets_are_64_bit() -> None:
    """A tile beyond the 2³¹st element is found: asked of the offsets, not of a tensor that size."""
    out, tile = torch.zeros(1, dtype=torch.int64), 3_000_000
    base_of[(1,)](out, tile, True)
    assert int(out) == tile * 32 * 1024 + 64
    base_of[(1,)](out, tile, False)
    row, column = tile // 16 * 32, tile % 16 * 64
    assert int(out) == (row * 1024 + 1) * 1024 + column
