"""Proxy Normalization's operators and launches: gradients of any strides, bytes, refusals."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from proxy_reference import (
    EPS,
    PROXY_EPS,
    RELU,
    Case,
    assert_as_exact_as_eager,
    case,
    fused,
    plain,
    run,
)
from torch import Tensor, nn
from torch.library import opcheck
from triton.runtime.interpreter import InterpreterBuilder as Builder

from normbench.kernels.fused import proxy_cuts, proxy_launches
from normbench.kernels.fused import proxy_norm as kernels
from normbench.kernels.fused import proxy_operators as operators
from normbench.kernels.fused.launch import Launch, recording

pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")

FIRST, LAST, SILU = False, True, 2

GRADIENTS = {
    "expanded": lambda g: g[:1, :1, :1, :1].expand_as(g),
    "expanded over samples": lambda g: g[:1].expand_as(g),
    "strided": lambda g: torch.stack([g, -g], -1)[..., 0],
    "transposed": lambda g: g.transpose(2, 3).contiguous().transpose(2, 3),
    "the other layout": lambda g: g.contiguous() if g.stride(1) == 1 else g.to(
        memory_format=torch.channels_last
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", GRADIENTS)
@pytest.mark.parametrize(("shape", "last"), [((2, 24, 7, 7), FIRST), ((2, 12, 7, 7), LAST)])
def test_gradients_of_any_strides(shape, last, kind) -> None:
    made = case(shape, last, 1, SILU, exact=True)
    given = GRADIENTS[kind](made.g)
    assert given.stride() != made.x.stride()
    found = run(fused, made, torch.float32, given)
    made.g = torch.empty_like(made.x).copy_(given)
    plain = run(fused, made, torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=True))


def test_an_input_with_gaps() -> None:
    made = case((2, 8, 5, 5), FIRST, 2, SILU)
    x = torch.stack([made.x, -made.x], -1)[..., 0]
    more = (*made.parameters, SILU, 2, EPS, PROXY_EPS)
    assert torch.equal(kernels.proxy_norm(x, *more), kernels.proxy_norm(made.x, *more))


@pytest.mark.parametrize(("shape", "last", "groups"), [
    ((3, 24, 7, 7), FIRST, 4), ((3, 24, 7, 7), LAST, 1), ((2, 12, 27, 27), LAST, 1),
    ((2, 12, 27, 27), FIRST, 1),
])  # fmt: skip
def test_the_same_bits_every_time(shape, last, groups) -> None:
    made = case(shape, last, groups, dtype=torch.bfloat16, spread=(10.0, 1.0), exact=True)
    first, second = run(fused, made, torch.bfloat16), run(fused, made, torch.bfloat16)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(("shape", "last", "groups"), [
    ((2, 24, 7, 7), FIRST, 4), ((2, 24, 7, 7), LAST, 1), ((1, 12, 27, 27), LAST, 1),
    ((1, 12, 27, 27), FIRST, 1),
])  # fmt: skip
def test_a_large_mean_costs_no_digits(shape, last, groups) -> None:
    made = case(shape, last, groups, act=0, spread=(1e4, 1.0), proxy=False)
    found, exact = run(fused, made, torch.float32)[:2], run(plain, made, torch.float64)[:2]
    for ours, ref in zip(found, exact, strict=True):
        assert (ours - ref).abs().max() < 5e-6  # the mean in one float: 1e-4


def everything(made: Case, chunked: bool) -> tuple[list[Tensor], list[Launch]]:
    """What both launchers return, and the launches."""
    learned = proxy_launches.Learned(*made.parameters)
    to = proxy_launches.Settings(
        made.act, made.groups, EPS, PROXY_EPS, exact=True, chunked=chunked
    )  # fmt: skip
    with recording() as launches:
        y, statistics, moments = proxy_launches.forward(made.x, learned, to)
        gradients = proxy_launches.backward(made.g, made.x, statistics, moments, learned, to)
    return [y, statistics, moments, *gradients], launches


@pytest.mark.parametrize(("shape", "last", "groups", "programs"), [
    ((3, 12, 27, 27), LAST, 1, 10), ((3, 12, 27, 27), FIRST, 1, 2), ((3, 36, 17, 17), LAST, 2, 4),
])  # fmt: skip
def test_chunks_of_the_batch_change_no_bit(shape, last, groups, programs, monkeypatch) -> None:
    made = case(shape, last, groups)
    sample = made.x[0].numel() * 4
    monkeypatch.setattr(proxy_launches, "CHUNK", sample)
    monkeypatch.setattr(proxy_cuts, "PROGRAMS_PER_MULTIPROCESSOR", programs // 2)
    monkeypatch.setattr(proxy_cuts, "multiprocessors", lambda device: 2)
    whole, launches = everything(made, chunked=False)
    parts, more = everything(made, chunked=True)
    assert len(launches) == 6
    assert len(more) >= 12
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


@pytest.mark.parametrize(("shape", "last", "groups"), [
    ((4096, 512, 28, 28), FIRST, 32), ((65536, 2048), FIRST, 1), ((70000, 32, 8, 8), LAST, 1),
    ((2048, 64, 63, 63), FIRST, 32), ((131072, 64, 2, 2), FIRST, 64),
])  # fmt: skip
def test_grids_are_no_larger_than_a_device_takes(shape, last, groups) -> None:
    x = torch.empty(shape, dtype=torch.bfloat16, device="meta")
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    p = torch.empty(shape[1], device="meta")
    for learned in ([p, p, p, p], [p, p, None, None]):
        _, launches = everything(Case(x, x, learned, RELU, groups, True), chunked=False)
        assert max(launch.grid[1] for launch in launches if len(launch.grid) > 1) <= 65535


@pytest.mark.parametrize(("shape", "last", "groups"), [
    ((5, 12, 27, 27), LAST, 1), ((5, 12, 27, 27), FIRST, 3), ((5, 160, 7, 7), LAST, 1),
    ((5, 130, 7, 7), FIRST, 1),
])  # fmt: skip
def test_a_full_grid_shares_samples_out(shape, last, groups, monkeypatch) -> None:
    made = case(shape, last, groups)
    usual, _ = everything(made, chunked=False)
    monkeypatch.setattr(proxy_cuts, "MOST_PROGRAMS", 2)
    monkeypatch.setattr(proxy_cuts, "multiprocessors", lambda device: 1)
    found, launches = everything(made, chunked=False)
    assert {launch.grid[1] for launch in launches if len(launch.grid) > 1} <= {1, 2}
    for a, b in zip(usual, found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)  # sums in another order


def test_a_zero_initialised_gamma_passes_gradients() -> None:
    """Gamma 0 leaves a constant proxy: its variance 0, nothing infinite."""
    for exact in (False, True):
        made = case((2, 8, 5, 5), FIRST, 2, exact=exact)
        made.parameters[0].zero_()
        made.parameters[1].fill_(0.5)
        found = run(fused, made, torch.float32)
        assert all(t.isfinite().all() for t in found)
        assert found[2].abs().min() > 0


@pytest.mark.parametrize("shape", [(0, 4, 3, 3), (2, 4, 0, 2), (3, 4, 1, 1)], ids=str)
def test_what_has_no_variance_is_refused(shape) -> None:
    p = torch.ones(4)
    with pytest.raises(ValueError, match="empty" if shape[0] == 0 else "at least 2 values"):
        kernels.proxy_norm(torch.ones(shape), p, p, p, p, RELU, 4, EPS, PROXY_EPS)


def test_other_refusals() -> None:
    x, p = torch.ones(2, 4, 3, 3), torch.ones(4)
    with pytest.raises(ValueError, match="3 groups do not divide 4 channels"):
        kernels.proxy_norm(x, p, p, p, p, RELU, 3, EPS, PROXY_EPS)
    for given in ((p, None, None), (None, None, None)):
        with pytest.raises(ValueError, match="needs bias, proxy_weight and proxy_bias"):
            kernels.proxy_norm(x, p, *given, RELU, 1, EPS, PROXY_EPS)
    with pytest.raises(ValueError, match="2³¹"):
        kernels.proxy_norm(torch.empty(1, 4, 2**29, device="meta"), p, p, p, p, 1, 1, EPS, 0.03)
    assert kernels.supported(nn.SiLU())
    assert not kernels.supported(nn.Tanh())


@pytest.mark.parametrize("last", [FIRST, LAST])
@pytest.mark.parametrize("proxy", [True, False])
def test_the_operators_pass_opcheck(last, proxy) -> None:
    made = case((2, 8, 5, 5), last, 2, SILU if proxy else 0, proxy=proxy)
    parameters = [*made.parameters, *[None] * 3][:4]
    opcheck(operators.forward, (made.x, *parameters, made.act, 2, EPS, PROXY_EPS, True))
    _, statistics, moments = operators.forward(
        made.x, *parameters, made.act, 2, EPS, PROXY_EPS, True
    )
    opcheck(
        operators.backward,
        (made.g, made.x, statistics, moments, *parameters, made.act, 2, True),
    )


@pytest.mark.parametrize("last", [FIRST, LAST])
def test_compiled_whole_and_bit_for_bit(last) -> None:
    made = case((2, 8, 5, 5), last, 2, SILU, exact=True)

    def step(x: Tensor, *parameters: Tensor) -> Tensor:
        more = (*parameters, SILU, 2, EPS, PROXY_EPS, True)
        return kernels.proxy_norm(x * 2, *more).square()

    found = []
    for function in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        leaves = made.leaves(torch.float32)
        y = function(*leaves)
        y.sum().backward()
        found.append([y.detach(), *(t.grad for t in leaves)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_parameters_keep_their_type() -> None:
    made = case((2, 8, 5, 5), FIRST, 2)
    leaves = [t.to(torch.bfloat16).requires_grad_() for t in (made.x, *made.parameters)]
    kernels.proxy_norm(*leaves, RELU, 2, EPS, PROXY_EPS).backward(made.g.bfloat16())
    assert {t.grad.dtype for t in leaves} == {torch.bfloat16}


def test_a_second_derivative_is_refused() -> None:
    made = case((2, 8, 5, 5), FIRST, 2, SILU)
    x, *parameters = made.leaves(torch.float32)
    y = kernels.proxy_norm(x, *parameters, SILU, 2, EPS, PROXY_EPS)
    (g,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        g.sum().backward()


def test_only_x_and_what_is_small_is_kept_for_the_backward() -> None:
    made = case((3, 32, 16, 16), LAST, 4, SILU, torch.bfloat16)
    sizes: dict[int, int] = {}

    def note(t: Tensor) -> Tensor:
        sizes[t.untyped_storage().data_ptr()] = t.numel() * t.itemsize
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        fused(made, *made.leaves(torch.bfloat16))
    assert sum(sizes.values()) == pytest.approx(made.x.numel() * 2, rel=0.03)


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Bytes that the lanes of loads and stores move while open, in the list's only element."""
    moved = [0]
    load, store = Builder.create_masked_load, Builder.create_masked_store

    def masked_load(self, ptrs, mask, *rest):
        moved[0] += int(mask.data.sum()) * ptrs.get_element_ty().primitive_bitwidth // 8
        return load(self, ptrs, mask, *rest)

    def masked_store(self, ptrs, value, mask, *rest):
        moved[0] += int(mask.data.sum()) * ptrs.get_element_ty().primitive_bitwidth // 8
        return store(self, ptrs, value, mask, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Builder, "create_masked_load", masked_load)
        patch.setattr(Builder, "create_masked_store", masked_store)
        yield moved


@pytest.mark.parametrize(("shape", "last", "groups", "resident"), [
    ((1, 32, 40, 40), LAST, 1, False), ((1, 32, 40, 40), FIRST, 1, False),
    ((1, 32, 40, 40), LAST, 16, False),
    ((4, 64, 14, 14), LAST, 2, True), ((4, 64, 14, 14), FIRST, 16, True),
])  # fmt: skip
def test_bytes_moved(shape, last, groups, resident, monkeypatch, interpreter) -> None:
    """Forward 3 and backward 5 passes over x; 2 and 3 where a program holds whole groups."""
    made = case(shape, last, groups, exact=True)
    view = proxy_cuts.sample_view(made.x, groups)
    assert (proxy_cuts.resident_cut(view, made.x.device) is not None) == resident
    x, *parameters = made.leaves(torch.float32)
    n = x.numel() * 4
    with counted(monkeypatch) as moved:
        y = fused(made, x, *parameters)
    assert moved[0] == pytest.approx((2 if resident else 3) * n, rel=0.05)
    with counted(monkeypatch) as moved:
        y.backward(made.g)
    assert moved[0] == pytest.approx((3 if resident else 5) * n, rel=0.05)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")
def test_infinities_stay_in_their_group() -> None:
    """A group's statistics are its own: not-finite values reach neither samples nor groups."""
    made = case((2, 8, 5, 5), LAST, 4, SILU)
    before = run(fused, made, torch.float32)
    made.x[0, 0, 0, 0] = torch.inf
    after = run(fused, made, torch.float32)
    for a, b in zip(before[:2], after[:2], strict=True):
        assert torch.equal(a[1], b[1])
        assert torch.equal(a[0, 2:], b[0, 2:])
        assert not b[0, :2].isfinite().all()
    assert_as_exact_as_eager(case((2, 8, 5, 5), LAST, 4, SILU), before)
