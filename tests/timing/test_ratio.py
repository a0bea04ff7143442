"""Ratios of times taken in turns."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from normbench.timing.ratio import LEAST_ROUNDS, paired_ratio


def test_a_drift_that_both_share_cancels() -> None:
    drift = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    ratio = paired_ratio([1.5 * d for d in drift], drift)
    assert (ratio.median, ratio.low, ratio.high) == pytest.approx((1.5, 1.5, 1.5))


@pytest.mark.parametrize("n", [6, 7, 10, 15, 40])
def test_the_bounds_are_the_order_statistics_that_scipy_names(n: int) -> None:
    values = np.random.default_rng(n).lognormal(size=n)
    ratio = paired_ratio(list(values), [1.0] * n)
    known = stats.quantile_test(values, p=0.5).confidence_interval(0.95)
    assert (ratio.low, ratio.high) == pytest.approx((known.low, known.high))


def test_coverage_of_a_skewed_ratio_by_simulation() -> None:
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        times = generator.lognormal(sigma=0.5, size=(2, 10))
        ratio = paired_ratio(list(times[0]), list(times[1]))
        held += ratio.low <= 1.0 <= ratio.high
    assert 0.95 <= held / 2000 <= 0.99  # by theory 0.979


def test_too_few_rounds_have_no_bounds() -> None:
    ratio = paired_ratio([1.0] * (LEAST_ROUNDS - 1), [2.0] * (LEAST_ROUNDS - 1))
    assert ratio.median == 0.5
    assert math.isnan(ratio.low)
    assert ratio.metrics() == {"ratio": 0.5}
    assert set(paired_ratio([1.0] * 6, [2.0] * 6).metrics("graph_")) == {
        "graph_ratio", "graph_ratio_low", "graph_ratio_high",
    }  # fmt: skip


@pytest.mark.parametrize(("ours", "reference"), [([], []), ([1.0], [1.0, 2.0]), ([0.0], [1.0])])
def test_what_is_no_round_is_refused(ours: list[float], reference: list[float]) -> None:
    with pytest.raises(ValueError, match=r"rounds|above 0"):
        paired_ratio(ours, reference)
