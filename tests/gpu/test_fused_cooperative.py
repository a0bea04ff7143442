"""The cooperative way on CUDA, where alone its programs run beside each other and wait."""

from __future__ import annotations

import copy

import pytest
import torch
from test_fused_kernels import (
    BATCH_NORMS,
    LAYOUTS,
    given,
    layer_of,
    same,
    step,
    test_a_captured_step_is_the_step_and_goes_on_when_replayed,
)
from torch import Tensor, nn

from normbench.kernels.fused import batch_plans
from normbench.kernels.fused.launch import recording
from normbench.kernels.fused.tiles import cooperative_cut, view

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="no CUDA device: `make gpu` runs these on one"
)
captured_and_replayed = test_a_captured_step_is_the_step_and_goes_on_when_replayed
del test_a_captured_step_is_the_step_and_goes_on_when_replayed  # or it runs here once more

SHAPES = pytest.mark.parametrize("shape", [(8, 64, 112, 112), (8, 512, 28, 28)], ids=str)
METHODS = pytest.mark.parametrize("method", BATCH_NORMS)


@pytest.fixture
def cooperating(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.version.hip is not None:
        pytest.skip("the cooperative way is not taken on AMD's GPUs")
    monkeypatch.setattr(batch_plans, "COOPERATIVE", 2)


def inputs(shape: tuple[int, ...], memory_format: torch.memory_format) -> list[Tensor]:
    found = [given(shape, seed).contiguous(memory_format=memory_format) for seed in (0, 1, 2)]
    if cooperative_cut(view(found[0]), found[0].device, 2, found[0].element_size()) is None:
        pytest.skip("more blocks of channels than programs: it streams")
    return found


@METHODS
@LAYOUTS
@SHAPES
def test_it_computes_what_streaming_does(
    method: str, shape: tuple[int, ...], memory_format: torch.memory_format,
    monkeypatch: pytest.MonkeyPatch, cooperating: None,
) -> None:  # fmt: skip
    ours = layer_of(method, shape[1], nn.SiLU())  # no kink, where one rounding decides
    streamed = copy.deepcopy(ours)
    x, residual, g = inputs(shape, memory_format)
    with recording() as launches:
        found = step(ours, x, residual, g)
    assert [launch.cooperative for launch in launches] == [True, True]
    monkeypatch.setattr(batch_plans, "COOPERATIVE", 0)
    expected = step(streamed, x, residual, g)
    for one, other in zip(found, expected, strict=True):  # an ulp of bfloat16
        size = float(other.abs().max())
        torch.testing.assert_close(one.float(), other.float(), rtol=8e-3, atol=1e-5 * size)
    for name, buffer in streamed.named_buffers():
        torch.testing.assert_close(ours.get_buffer(name), buffer, rtol=1e-5, atol=1e-6)


@METHODS
@LAYOUTS
@SHAPES
def test_the_same_bits_two_hundred_times_beside_other_work(
    method: str, shape: tuple[int, ...], memory_format: torch.memory_format, cooperating: None
) -> None:
    """A program that did not wait, or was let go too early, would find other sums some time."""
    built = layer_of(method, shape[1])
    x, residual, g = inputs(shape, memory_format)
    busy, other = torch.randn(2048, 2048, device="cuda"), torch.cuda.Stream()
    first: list[Tensor] = []
    for _ in range(200):
        layer = copy.deepcopy(built)
        with torch.cuda.stream(other):
            busy = busy @ busy * 1e-3
        found = step(layer, x, residual, g) + [b.clone() for b in layer.buffers()]
        first = first or found
        assert same(found, first)


@METHODS
def test_in_a_cuda_graph(method: str, cooperating: None) -> None:
    captured_and_replayed(method, (8, 64, 112, 112))


@METHODS
def test_two_at_once_on_two_streams(method: str, cooperating: None) -> None:
    """Each waits by flags of its own, and all programs of one are on the device or none."""
    layer = layer_of(method)
    x, residual, g = inputs((8, 64, 112, 112), torch.channels_last)
    layers = [copy.deepcopy(layer) for _ in range(3)]
    expected = step(layers.pop(), x, residual, g)
    streams = [torch.cuda.Stream() for _ in layers]
    torch.cuda.synchronize()
    for _ in range(20):
        found = []
        for stream, built in zip(streams, layers, strict=True):
            with torch.cuda.stream(stream):
                found.append(step(copy.deepcopy(built), x, residual, g))
        torch.cuda.synchronize()
        assert all(same(one, expected) for one in found)


def test_more_programs_than_fit_are_refused(
    monkeypatch: pytest.MonkeyPatch, cooperating: None
) -> None:
    monkeypatch.setattr(batch_plans, "COOPERATIVE", 64)
    x, residual, g = inputs((8, 512, 28, 28), torch.channels_last)
    with pytest.raises(RuntimeError, match="cooperative"):
        step(layer_of("batch_norm_triton", 512), x, residual, g)
