"""The cooperative way: its phases interpreted one after the other, and what would be launched.

That its programs really wait for each other shows only on a GPU, in tests/gpu; that machine code
loads nothing before it has waited, in tests/kernels.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import test_batch_renorm as renorm
import torch
from batch_reference import (
    EPS,
    assert_close_as_torch,
    native_z,
    plain_z,
    run,
    wide,
    without_kinks,
)
from test_batch_norm import FIRST, LAST, SPREADS, case, fused, types
from torch import Tensor

from normbench.kernels.fused import batch_launches, batch_plans, tiles
from normbench.kernels.fused import batch_norm as kernels
from normbench.kernels.fused.launch import Launch, recording
from normbench.kernels.fused.tiles import IN_CACHE, View, cooperative_cut

# Lanes outside of a tile hold no values of x: what is computed from them is not stored.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")

IDENTITY, RELU, SILU, HARDSWISH = 0, 1, 2, 5
HALF, BFLOAT = torch.float16, torch.bfloat16
CASES = [
    ((7, 3, 30, 30), FIRST, torch.float32, RELU, True, SPREADS[0]),
    ((7, 3, 30, 30), FIRST, BFLOAT, SILU, True, SPREADS[1]),
    ((20, 4, 14, 14), FIRST, HALF, IDENTITY, False, SPREADS[0]),
    ((11, 2, 29, 29), FIRST, BFLOAT, HARDSWISH, False, SPREADS[1]),
    ((5, 66, 7, 7), LAST, torch.float32, SILU, False, SPREADS[2]),
    ((5, 66, 7, 7), LAST, HALF, RELU, True, SPREADS[3]),
    ((2, 140, 12, 12), LAST, BFLOAT, RELU, False, SPREADS[1]),
    ((9, 6, 14, 14), LAST, torch.float32, IDENTITY, True, SPREADS[2]),
]
"""Shape, memory format, type, activation, residual, spread: with tiles and splits cut short."""
BOTH = pytest.mark.parametrize(
    ("shape", "memory_format"), [((9, 4, 32, 32), FIRST), ((5, 32, 15, 15), LAST)], ids=str
)


@pytest.fixture
def streaming(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small tensors stream too: interpreting large ones takes long."""
    monkeypatch.setattr(tiles, "RESIDENT", 0)
    monkeypatch.setattr(tiles, "LOOPED", 0)
    batch_plans.plan.cache_clear()
    yield
    batch_plans.plan.cache_clear()


@pytest.fixture
def cooperating(streaming: None, monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.version.hip is not None:
        pytest.skip("the cooperative way is not taken on AMD's GPUs")
    monkeypatch.setattr(batch_plans, "COOPERATIVE", 2)


def names(launches: list[Launch]) -> set[str]:
    return {launch.kernel.__name__ for launch in launches}


@pytest.mark.usefixtures("cooperating")
@pytest.mark.parametrize(
    ("shape", "memory_format", "dtype", "act", "residual", "spread"), CASES, ids=str
)
def test_forward_and_backward(shape, memory_format, dtype, act, residual, spread) -> None:
    layer = without_kinks(case(shape, memory_format, dtype, residual, spread), act)
    exact = run(plain_z, layer, act, torch.float64)
    native = run(native_z, layer, act, dtype)
    with recording() as launches:
        found = wide(fused(layer, act))
    assert names(launches) == {"cooperative_forward", "cooperative_backward"}
    assert_close_as_torch(found, exact, native, types(layer))


@pytest.mark.usefixtures("cooperating")
@pytest.mark.parametrize(
    ("shape", "memory_format"), [((5, 3, 32, 32), FIRST), ((4, 20, 13, 13), LAST)], ids=str
)
def test_batch_renorm(shape, memory_format) -> None:
    with recording() as launches:
        renorm.test_six_steps_of_the_schedule(shape, memory_format)
    assert names(launches) == {"cooperative_forward", "cooperative_backward"}


def step(shape, memory_format, act=SILU) -> list[Tensor | None]:
    """Output, gradients, running values and the count of steps, of one training step."""
    layer = case(shape, memory_format, torch.bfloat16, True, (10.0, 1.0))
    leaves = layer.as_type(torch.bfloat16)
    kept = [torch.zeros(shape[1]), torch.ones(shape[1])]
    counted = torch.tensor(6)
    y = kernels.batch_norm(*leaves, *kept, 0.1, EPS, act, counted)
    y.backward(layer.g)
    return [y.detach(), *(t.grad for t in leaves), *kept, counted]


def same(found: list[Tensor | None], expected: list[Tensor | None]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.usefixtures("cooperating")
@BOTH
def test_the_same_bits_every_time(shape, memory_format) -> None:
    first = step(shape, memory_format)
    assert first[-1] == 7  # one program counts the step
    assert same(step(shape, memory_format), first)


@pytest.mark.usefixtures("streaming", "interpreter")
@pytest.mark.parametrize("merged", [2048, 32])
@pytest.mark.parametrize("act", [RELU, SILU])
@BOTH
def test_the_bits_of_streaming(shape, memory_format, act, merged, monkeypatch) -> None:
    """Where both have the same splits; also where several programs share their merging."""
    with recording() as streamed:
        expected = step(shape, memory_format, act)
    monkeypatch.setattr(batch_plans, "COOPERATIVE", 4)
    monkeypatch.setattr(batch_plans, "MERGED", merged)
    with recording() as launches:
        found = step(shape, memory_format, act)
    assert launches[0].grid == streamed[0].grid
    # With channels first a block is one channel: there is nothing to share.
    share = 4 if merged == 32 else 32  # of 9 splits 8 merge, or one
    assert {launch.constants["WIDTH"] for launch in launches} == {
        share if memory_format is LAST else 1
    }
    assert same(found, expected)


def launched(shape, memory_format, device: str) -> list[Launch]:
    layer = case(shape, memory_format, torch.bfloat16, True, (0.0, 1.0))
    x, residual, w, b = (t.to(device) for t in layer.tensors())
    with recording() as launches:
        _, saved, bits = batch_launches.forward(
            x, residual, w, b, w, w, 0.1, EPS, RELU, True, None, None
        )  # fmt: skip
        batch_launches.backward(layer.g.to(device), x, saved, None, bits, RELU, True, True, False)
    return launches


@pytest.mark.usefixtures("cooperating", "interpreter")
@BOTH
def test_one_launch_is_its_phases(shape, memory_format) -> None:
    """On a GPU all phases in one; interpreted the same kernel, arguments and constants, thrice."""
    whole = launched(shape, memory_format, "meta")
    phases = launched(shape, memory_format, "cpu")
    assert [launch.kernel.__name__ for launch in whole] == [
        "cooperative_forward", "cooperative_backward",
    ]  # fmt: skip
    assert all(launch.cooperative and launch.constants["PHASE"] == -1 for launch in whole)
    assert all(launch.options()["launch_cooperative_grid"] for launch in whole)
    assert not any(launch.cooperative for launch in phases)
    for one, apart in zip(whole, (phases[:3], phases[3:]), strict=True):
        assert [launch.constants["PHASE"] for launch in apart] == [0, 1, 2]
        for launch in apart:
            assert launch.kernel is one.kernel
            assert list(launch.arguments) == list(one.arguments)
            fixed = {"PHASE", "R", "K", "SP", "WIDTH"}  # there are fewer multiprocessors
            assert launch.constants.keys() == one.constants.keys()
            assert all(
                launch.constants[n] == one.constants[n] for n in one.constants if n not in fixed
            )


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("programs", [2, 4])
def test_the_grid_is_on_the_device_at_once(last, programs) -> None:
    meta = torch.device("meta")
    for channels in (1, 3, 64, 72, 256, 512, 2048):
        for rows in (100, 5000):
            v = View(rows * 49, channels, 1, True) if last else View(rows, channels, 49, False)
            cut = cooperative_cut(v, meta, programs, 2)
            if cut is None:
                odd, blocks = last and channels % 2, 1 if last else channels
                assert odd or 2 * v.values * channels > IN_CACHE or 2 * blocks > programs * 132
            else:
                assert cut.blocks * cut.splits <= programs * 132
                assert 1 <= (cut.splits - 1) * cut.per_split < cut.tiles


def test_a_tensor_beyond_the_cache_streams() -> None:
    meta, fits = torch.device("meta"), View(IN_CACHE // 128, 64, 1, True)
    assert cooperative_cut(fits, meta, 2, 2) is not None
    assert cooperative_cut(fits, meta, 2, 4) is None


@pytest.mark.usefixtures("cooperating")
def test_evaluation_streams() -> None:
    layer = case((16, 32, 16, 16), LAST, torch.float32, False, (0.0, 1.0))
    leaves = layer.as_type(torch.float32)
    with recording() as launches:
        y = kernels.evaluated(*leaves, torch.zeros(32), torch.ones(32), EPS, RELU)
        y.backward(layer.g)
    assert names(launches) == {"apply", "backward_stats", "backward_settle"}


def way_of(v: View, programs: int) -> str:
    plan = batch_plans.plan.__wrapped__  # nothing of what is tried here is kept
    return plan(v, torch.device("meta"), programs=programs, element_size=2).way


def test_it_is_off_and_not_for_rocm(monkeypatch) -> None:
    v = View(6272, 512, 1, True)
    assert batch_plans.COOPERATIVE == 0
    monkeypatch.setattr(torch.version, "hip", None)
    assert [way_of(v, n) for n in (0, 2)] == ["streaming", "cooperative"]
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert way_of(v, 2) == "streaming"


def test_channels_that_leave_a_program_each_stream(monkeypatch) -> None:
    monkeypatch.setattr(torch.version, "hip", None)
    found = [way_of(View(16, channels, 3136, False), 2) for channels in (132, 133)]
    assert found == ["cooperative", "streaming"]
