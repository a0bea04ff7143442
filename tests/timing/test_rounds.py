"""Turns, percentiles, and the bytes that a case must move."""

from __future__ import annotations

import itertools
import statistics

import pytest
import torch
from torch import nn

from normbench.timing.case import FORMS, Case
from normbench.timing.entry import Entry, record_metrics
from normbench.timing.rounds import LEAST, MOST, Times, in_turns


def test_each_round_begins_with_another_and_all_take_part() -> None:
    order: list[str] = []

    def timer(name: str) -> float:
        order.append(name)
        return 1.0

    names = ["a", "b", "c"]
    timers = {name: lambda name=name: timer(name) for name in names}
    taken = in_turns(timers, least=3, seconds=0.0)
    assert order == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]
    assert {name: len(found) for name, found in taken.items()} == dict.fromkeys(names, 3)


@pytest.mark.parametrize(("tick", "rounds"), [(0.0, MOST), (1e3, LEAST), (0.3 / 20, 20)])
def test_the_clock_decides_between_the_least_and_the_most_rounds(tick: float, rounds: int) -> None:
    # Asked once before the first round, and after the least number of them before each other one.
    ticks = itertools.chain([0.0], (tick * n for n in itertools.count(LEAST)))
    taken = in_turns({"a": lambda: 1.0}, clock=lambda: next(ticks))
    assert len(taken["a"]) == rounds


def test_percentiles_are_those_of_the_standard_library() -> None:
    samples = [3.0, 1.0, 4.0, 1.5, 9.0, 2.6, 5.0]
    fifths = statistics.quantiles(samples, n=5, method="inclusive")
    times = Times.of(samples)
    assert (times.median, times.p20, times.p80) == pytest.approx((3.0, fifths[0], fifths[3]))
    assert Times.of([2.0]) == Times(2.0, 2.0, 2.0)


@pytest.mark.parametrize(("form", "resident", "forward", "backward"), [
    ("none", False, 3, 5), ("relu", False, 3, 5), ("silu", True, 2, 3),
    ("add_relu", False, 4 + 1 / 16, 6 + 1 / 16), ("add_relu", True, 3 + 1 / 16, 4 + 1 / 16),
])  # fmt: skip
def test_bytes_to_move_are_those_of_the_decision(form, resident, forward, backward) -> None:
    case = Case(form, (8, 64, 14, 14), "nhwc", "bf16")
    size = 8 * 64 * 14 * 14 * 2
    assert case.bytes_to_move("forward", resident) == forward * size
    assert case.bytes_to_move("backward", resident) == backward * size
    assert case.bytes_to_move("both", resident) == (forward + backward) * size


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_inputs_are_random_of_their_layout_and_type(form, layout) -> None:
    case = Case(form, (2, 6, 5, 5), layout, "fp16")
    given = case.inputs(torch.device("cpu"))
    tensors = [t for t in (given.x, given.residual, given.gradient) if t is not None]
    assert len(tensors) == 2 + FORMS[form].residual
    for tensor in tensors:
        assert tensor.dtype is torch.float16
        assert tensor.is_contiguous(memory_format=torch.channels_last) == (layout == "nhwc")
        assert tensor.float().std() > 0.5


def test_gradients_arrive_at_input_residual_and_parameters_and_can_be_had_twice() -> None:
    given = Case("add_relu", (2, 6, 5, 5), "nchw", "fp32").inputs(torch.device("cpu"))

    class Layer(nn.BatchNorm2d):
        def forward(self, x: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + residual

    layer = Layer(6)
    y = given.forward(layer)
    first, second = (given.backward(layer, y, keep=True) for _ in range(2))
    shapes = [(2, 6, 5, 5), (2, 6, 5, 5), (6,), (6,)]
    assert [tuple(g.shape) for g in first] == shapes
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert torch.equal(first[1], given.gradient)
    assert len(given.both(layer)) == 5


def test_a_ratio_is_the_peers_median_over_ours_and_failures_stay_with_the_peer() -> None:
    ours, peer = Entry(), Entry()
    ours.take("graph_both", [1.0, 2.0, 3.0])
    peer.take("graph_both", [4.0, 5.0, 9.0])
    peer.take("warm_both", [1.0])
    peer.failed("cleared both", ValueError("no\nsuch thing"))
    metrics = record_metrics({"ours": ours, "peer": peer}, "ours")
    assert metrics == {
        "graph_both_seconds": 2.0,
        "graph_both_p20_seconds": 1.4,
        "graph_both_p80_seconds": 2.6,
        "peer_graph_both_seconds": 5.0,
        "peer_graph_both_ratio": 2.5,
        "peer_warm_both_seconds": 1.0,
    }
    trial = peer.trial("peer")
    assert (trial["status"], trial["reason"]) == (
        "error",
        "cleared both: ValueError: no such thing",
    )
    assert trial["samples"] == {"graph_both": [4.0, 5.0, 9.0], "warm_both": [1.0]}
