"""Group norm with its activation on ProxyNorm's kernels, interpreted, against torch in float64."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from batch_reference import ACTIVATIONS, EPS, Layer, run, wide
from group_reference import assert_as_exact_as_eager, fused, plain_z
from test_batch_norm import DTYPES, FIRST, LAST, RESIDENT, SPREADS, STREAMING, case
from torch import Tensor, nn
from torch.library import opcheck
from torch.nn import functional as F

import normbench
from normbench.kernels.fused import group_norm as kernels
from normbench.kernels.fused import proxy_cuts, proxy_launches
from normbench.kernels.fused import proxy_operators as operators
from normbench.kernels.fused.launch import recording

# Lanes outside of a tile hold no values of x: what is computed from them is not stored.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")

RELU, SILU = 1, 2
LAST_3D = torch.channels_last_3d

GEOMETRIES = [
    ((2, 63, 7, 7), FIRST, 1, RESIDENT), ((2, 63, 7, 7), LAST, 21, RESIDENT),
    ((2, 24, 7, 7), FIRST, 24, RESIDENT), ((2, 24, 7, 7), LAST, 6, RESIDENT),
    ((2, 65, 9, 9), FIRST, 5, RESIDENT), ((2, 12, 7, 7), LAST, 12, RESIDENT),
    ((3, 1, 14, 14), FIRST, 1, RESIDENT), ((6, 96), FIRST, 32, RESIDENT),
    ((4, 48, 1, 1), LAST, 1, RESIDENT), ((2, 6, 50), FIRST, 2, RESIDENT),
    ((2, 4, 3, 4, 5), LAST_3D, 2, RESIDENT), ((2, 3, 56, 56), FIRST, 3, RESIDENT),
    ((1, 3, 56, 56), LAST, 1, STREAMING), ((1, 3, 56, 56), LAST, 3, STREAMING),
    ((1, 66, 18, 18), LAST, 3, STREAMING), ((1, 64, 24, 24), LAST, 16, STREAMING),
    ((1, 66, 24, 24), LAST, 22, STREAMING), ((1, 48, 28, 28), FIRST, 2, STREAMING),
    ((2, 72, 14, 14), FIRST, 1, STREAMING), ((2, 72, 12, 12), LAST, 1, STREAMING),
]  # fmt: skip
"""Shape, layout, groups, and how the kernels go over it."""

AFFINE = ["both", "both", "weight", "bias", "none"]
"""Which parameters there are."""

WAYS = [
    ((2, 24, 7, 7), FIRST, 4, RESIDENT), ((2, 24, 7, 7), LAST, 1, RESIDENT),
    ((1, 12, 27, 27), LAST, 1, STREAMING), ((1, 12, 27, 27), FIRST, 1, STREAMING),
]  # fmt: skip
"""Both ways in both layouts, small."""
EACH_WAY = pytest.mark.parametrize(("shape", "memory_format", "groups", "form"), WAYS)


def forms() -> list[tuple[int, ...]]:
    """Geometry, type, activation, spread and parameters, all covered: two of each that is quick."""
    rest = itertools.cycle(itertools.product(range(len(AFFINE)), range(3), range(6)))
    spreads = itertools.cycle(range(len(SPREADS)))
    found = []
    for geometry, (*_, form) in enumerate(GEOMETRIES):
        for _ in range(2 if form == RESIDENT else 1):
            for _ in range(7):  # strides of the cycles that have no common divisor
                affine, dtype, act = next(rest)
            found.append((geometry, dtype, act, next(spreads), affine))
    return found


def with_parameters(layer: Layer, which: str) -> Layer:
    return replace(
        layer,
        weight=layer.weight if which in ("both", "weight") else None,
        bias=layer.bias if which in ("both", "bias") else None,
    )


def made(shape, memory_format, dtype=torch.float32, spread=(0.0, 1.0), which="both") -> Layer:
    return with_parameters(case(shape, memory_format, dtype, False, spread), which)


@pytest.mark.parametrize(("geometry", "dtype", "act", "spread", "affine"), forms())
def test_forward_and_backward(geometry, dtype, act, spread, affine) -> None:
    shape, memory_format, groups, form = GEOMETRIES[geometry]
    layer = made(shape, memory_format, DTYPES[dtype], SPREADS[spread], AFFINE[affine])
    with recording() as launches:
        assert_as_exact_as_eager(layer, groups, act)
    settled = AFFINE[affine] != "none"
    assert len(launches) == (2 + settled if form == RESIDENT else 6)


def test_the_fuzz_covers_every_activation_type_spread_and_parameter() -> None:
    found = forms()
    for column, choices in ((1, 3), (2, len(ACTIVATIONS)), (3, len(SPREADS)), (4, len(AFFINE))):
        assert {form[column] for form in found} == set(range(choices))


@pytest.mark.parametrize("memory_format", [FIRST, LAST], ids=str)
@pytest.mark.parametrize("act", range(len(ACTIVATIONS)))
def test_every_activation_in_both_layouts(act, memory_format) -> None:
    assert_as_exact_as_eager(made((3, 6, 3, 3), memory_format), 3, act)


@EACH_WAY
def test_a_large_mean_costs_no_digits(shape, memory_format, groups, form) -> None:
    layer = made(shape, memory_format, spread=(1e4, 1.0))
    exact = run(plain_z(groups), layer, SILU, torch.float64)
    for ours, ref in zip(wide(fused(layer, groups, SILU))[:2], exact, strict=False):
        assert (ours - ref).abs().max() < 1e-5  # the mean in one float: 1e-4


@EACH_WAY
def test_the_backward_finds_the_very_relu_mask_of_the_forward(
    shape, memory_format, groups, form
) -> None:
    layer = made(shape, memory_format, spread=(100.0, 0.01))
    y, *_, d_bias = fused(layer, groups, RELU, torch.ones_like(layer.g))
    assert torch.equal(d_bias, (y > 0).sum((0, 2, 3)).float())


@EACH_WAY
def test_the_same_bits_every_time(shape, memory_format, groups, form) -> None:
    layer = made(shape, memory_format, torch.bfloat16, (10.0, 1.0))
    first, second = (fused(layer, groups, RELU) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert (a is None and b is None) or torch.equal(a, b)


GRADIENTS = {
    "expanded": lambda g: g[:1, :1, :1, :1].expand_as(g),
    "strided": lambda g: torch.stack([g, -g], -1)[..., 0],
    "the other layout": lambda g: g.contiguous() if g.stride(1) == 1 else g.to(
        memory_format=LAST
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", GRADIENTS)
@pytest.mark.parametrize("memory_format", [FIRST, LAST], ids=str)
def test_gradients_of_any_strides(memory_format, kind) -> None:
    layer = made((2, 12, 5, 5), memory_format)
    given = GRADIENTS[kind](layer.g)
    assert given.stride() != layer.x.stride()
    found = fused(layer, 2, SILU, given)
    plain = fused(layer, 2, SILU, torch.empty_like(layer.x).copy_(given))
    assert all(torch.equal(found[i], plain[i]) for i in (0, 1, 3, 4))


def test_inputs_and_parameters_of_any_strides() -> None:
    layer = made((2, 8, 5, 5), FIRST)
    x = torch.stack([layer.x, -layer.x], -1)[..., 0]
    weight = torch.tensor([2.0]).expand(8)
    y = kernels.group_norm(x, weight, None, 2, EPS)
    assert torch.equal(y, kernels.group_norm(layer.x, weight.contiguous(), None, 2, EPS))
    torch.testing.assert_close(y, 2 * F.group_norm(x, 2))


def test_parameters_keep_their_type() -> None:
    layer = made((2, 8, 5, 5), LAST, torch.bfloat16)
    leaves = [t.bfloat16().requires_grad_() for t in (layer.x, layer.weight, layer.bias)]
    kernels.group_norm(*leaves, 2, EPS, SILU).backward(layer.g)
    assert {t.grad.dtype for t in leaves} == {torch.bfloat16}


def test_chunks_of_the_batch_change_no_bit(monkeypatch) -> None:
    layer = made((2, 3, 56, 56), LAST)
    learned = proxy_launches.Learned(layer.weight, layer.bias, None, None)
    found = []
    monkeypatch.setattr(proxy_launches, "CHUNK", layer.x[0].numel() * 4)
    monkeypatch.setattr(proxy_cuts, "multiprocessors", lambda device: 1)
    for chunked in (False, True):
        to = proxy_launches.Settings(SILU, 1, EPS, 0.0, exact=False, chunked=chunked)
        y, statistics, moments = proxy_launches.forward(layer.x, learned, to)
        gradients = proxy_launches.backward(layer.g, layer.x, statistics, moments, learned, to)
        found.append([y, statistics, *gradients])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("memory_format", [FIRST, LAST], ids=str)
@pytest.mark.parametrize("which", ["both", "none"])
def test_the_operators_pass_opcheck(memory_format, which) -> None:
    layer = made((2, 8, 5, 5), memory_format, which=which)
    learned = (layer.weight, layer.bias, None, None)
    given = (layer.x, *learned, SILU, 2, EPS, 0.0, False)
    opcheck(operators.forward, given)
    _, statistics, moments = operators.forward(*given)
    opcheck(
        operators.backward, (layer.g, layer.x, statistics, moments, *learned, SILU, 2, False)
    )  # fmt: skip


def test_compiled_whole_and_bit_for_bit() -> None:
    def step(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return kernels.group_norm(x * 2, weight, bias, 2, EPS, RELU).square()

    layer, found = made((2, 8, 5, 5), LAST), []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        leaves = [t for t in layer.as_type(torch.float32) if t is not None]
        y = function(*leaves)
        y.sum().backward()
        found.append([y.detach(), *(t.grad for t in leaves)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_only_x_and_what_is_small_is_kept_for_the_backward() -> None:
    layer = made((3, 32, 16, 16), LAST, torch.bfloat16)
    sizes: dict[int, int] = {}

    def note(t: Tensor) -> Tensor:
        sizes[t.untyped_storage().data_ptr()] = t.numel() * t.itemsize
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        fused(layer, 4, SILU)
    assert sum(sizes.values()) == pytest.approx(layer.x.numel() * 2, rel=0.03)


def test_a_second_derivative_is_refused() -> None:
    x = torch.randn(2, 4, 5, 5, requires_grad=True)
    y = kernels.group_norm(x, None, None, 2, EPS, SILU)
    (g,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        g.sum().backward()


@pytest.mark.parametrize("shape", [(0, 4, 3, 3), (2, 4, 0, 2), (3, 4, 1, 1)], ids=str)
def test_what_has_no_variance_is_refused(shape) -> None:
    with pytest.raises(ValueError, match="empty" if shape[0] == 0 else "at least 2 values"):
        kernels.group_norm(torch.ones(shape), None, None, 4, EPS)


def test_other_refusals() -> None:
    x = torch.ones(2, 4, 3, 3)
    with pytest.raises(ValueError, match="3 groups do not divide 4 channels"):
        kernels.group_norm(x, None, None, 3, EPS)
    for weight, bias in ((torch.ones(3), None), (None, torch.ones(4, 1))):
        with pytest.raises(ValueError, match="4 channels do not go with"):
            kernels.group_norm(x, weight, bias, 2, EPS)
    with pytest.raises(ValueError, match="2³¹"):
        kernels.group_norm(torch.empty(1, 4, 2**29, device="meta"), None, None, 1, EPS)


@pytest.mark.parametrize("method", ["group_norm_triton", "layer_norm_chw_triton"])
def test_an_activation_can_be_given_taken_back_and_be_unknown_to_the_kernels(method) -> None:
    x = torch.randn(2, 6, 3, 3)
    expected = F.group_norm(x, 3 if "group" in method else 1)
    params = {"groups": 3} if "group" in method else {}
    layer = normbench.build(method, 6, act=nn.SiLU(), **params)
    torch.testing.assert_close(layer(x), F.silu(expected))
    layer.act = None
    torch.testing.assert_close(layer(x), expected)
    layer.act = nn.Tanh()
    torch.testing.assert_close(layer(x), expected.tanh())
    assert list(layer.state_dict()) == ["weight", "bias"]


@pytest.mark.parametrize("method", ["group_norm_triton", "layer_norm_chw_triton"])
def test_a_layer_takes_an_empty_batch_as_its_eager_ancestor_does(method) -> None:
    layer = normbench.build(method, 6, act=nn.ReLU())
    x = torch.empty(0, 6, 3, 3, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.shape == x.shape
