"""What layers cost: bytes, passes, FLOPs and time, counted on layers made up for it."""

from __future__ import annotations

import pytest
from made_up_layers import Answers, Convolves, Layer, MixesChannels, OwnedReLU, SixPasses

from normbench.capabilities import ALONE, Answer, costs, flops


@pytest.mark.parametrize(
    ("method", "with_relu", "alone"),
    # of SixPasses: the input, the three results of exp (two are inputs too), that of the ReLU
    [("none", 4, 0), ("batch_norm", 8, 4), (SixPasses, 20, 16)],
)
def test_bytes_kept_for_backward(
    answers: Answers, method: str | type[Layer], with_relu: float, alone: float
) -> None:
    entries = answers(costs.saved_bytes, method)
    assert entries["saved_bytes"].value == pytest.approx(with_relu, abs=0.1)
    assert entries["saved_bytes" + ALONE].value == pytest.approx(alone, abs=0.1)


def test_passes_over_the_activation(answers: Answers) -> None:
    forward = {m: answers(costs.passes_forward, m) for m in ("none", "batch_norm")}
    forward["made up"] = answers(costs.passes_forward, SixPasses)
    assert [e["passes_forward"].value for e in forward.values()] == [1, 2, 7]
    assert [e["passes_forward" + ALONE].value for e in forward.values()] == [0, 1, 6]
    assert answers(costs.passes_backward, "batch_norm")["passes_backward"].value == 2


@pytest.mark.parametrize(
    ("method", "with_relu", "alone"),
    # batch norm: sum; subtract, square, add; scale, shift
    [("none", 1, 0), ("batch_norm", 7, 6), (SixPasses, 7, 6), (Convolves, 17, 16)],
)
def test_flops_are_counted(
    answers: Answers, method: str | type[Layer], with_relu: float, alone: float
) -> None:
    entries = answers(flops.flops_per_element, method)
    assert entries["flops_per_element"].value == with_relu
    assert entries["flops_per_element" + ALONE].value == alone


def test_an_op_that_cannot_be_counted_is_named(answers: Answers) -> None:
    entry = answers(flops.flops_per_element, MixesChannels)["flops_per_element"]
    assert entry == Answer(None, "missing: no count for roll")


def test_time_is_relative_to_batch_norm(answers: Answers) -> None:
    less, more = (answers(costs.time_ratio, method)["time_ratio"] for method in ("none", SixPasses))
    assert less.value is not None
    assert more.value is not None
    assert less.value < 0.8 < 1.2 < more.value
    assert "p20" in less.reason


def test_an_owners_relu_counts_as_the_one_that_follows_others(answers: Answers) -> None:
    owner = answers(costs.saved_bytes, OwnedReLU, consumes_activation=True)
    assert owner == answers(costs.saved_bytes, "none")
