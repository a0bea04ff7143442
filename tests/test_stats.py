from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from normbench import stats

FINITE = st.floats(-1e6, 1e6, allow_subnormal=False)
SAMPLE = [94.5, 94.8, 95.3, 94.1, 94.9]


def test_t_interval_is_scipys() -> None:
    interval = stats.t_interval(SAMPLE, level=0.9)
    expected = scipy.stats.t.interval(
        0.9, len(SAMPLE) - 1, np.mean(SAMPLE), scipy.stats.sem(SAMPLE)
    )
    assert (interval.low, interval.high) == pytest.approx(expected, rel=1e-12)


def test_t_interval_of_two_values_is_the_closed_form() -> None:
    # t with one degree of freedom is Cauchy: the 97.5% point is tan(0.475·π), s/√2 = |a − b|/2
    interval = stats.t_interval([1.0, 3.0])
    half = math.tan(0.475 * math.pi)
    assert (interval.low, interval.high) == pytest.approx((2 - half, 2 + half))


def test_one_value_has_no_bounds() -> None:
    interval = stats.t_interval([0.5])
    assert not interval.bounded
    assert str(interval) == "0.500 (n=1)"


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
def test_no_interval_of_nothing_or_of_what_is_not_finite(values: Any) -> None:
    with pytest.raises(stats.StatsError):
        stats.t_interval(values)


@pytest.mark.parametrize("level", [0, 1, 95])
def test_level_is_a_share(level: Any) -> None:
    with pytest.raises(stats.StatsError, match="between 0 and 1"):
        stats.t_interval(SAMPLE, level)


@settings(max_examples=50, deadline=None)
@given(st.lists(FINITE, min_size=2, max_size=8), st.floats(0.5, 100), FINITE)
def test_t_interval_follows_a_change_of_unit(values: Any, scale: Any, shift: Any) -> None:
    interval = stats.t_interval(values)
    moved = stats.t_interval([scale * value + shift for value in values])
    wanted = (scale * interval.low + shift, scale * interval.high + shift)
    assert (moved.low, moved.high) == pytest.approx(wanted, rel=1e-6, abs=1e-3)


def test_paired_difference_is_scipys_paired_t_test() -> None:
    a = dict(enumerate(SAMPLE))
    b = dict(enumerate([94.0, 94.9, 94.6, 93.8, 94.2]))
    difference = stats.paired_difference(a, b)
    test = scipy.stats.ttest_rel(list(a.values()), list(b.values()))
    expected = test.confidence_interval(0.95)
    assert difference.p_value == pytest.approx(test.pvalue, rel=1e-12)
    assert (difference.low, difference.high) == pytest.approx((expected.low, expected.high))


def test_paired_difference_says_which_seeds_it_used() -> None:
    difference = stats.paired_difference({0: 1.0, 1: 2.0, 7: 3.0}, {7: 1.0, 1: 1.0, 9: 5.0})
    assert (difference.mean, difference.n) == (1.5, 2)
    assert difference.seeds == (1, 7)
    assert difference.unpaired == (0, 9)


def test_paired_difference_cancels_what_seeds_share() -> None:
    shared = {seed: 10.0 * seed for seed in range(5)}
    noise = [0.1, -0.1, 0.05, 0.0, -0.05]
    better = {seed: value + 1 + noise[seed] for seed, value in shared.items()}
    assert stats.paired_difference(better, shared).low > 0.5
    assert stats.t_interval(better.values()).low < stats.t_interval(shared.values()).high


def test_nothing_to_pair_is_said() -> None:
    with pytest.raises(stats.StatsError, match="none in common"):
        stats.paired_difference({0: 1.0}, {1: 1.0})


@pytest.mark.parametrize("shift", [0.0, 0.25])
def test_equal_differences_are_no_evidence(shift: float) -> None:
    a = {seed: 0.1 * seed for seed in range(5)}
    b = {seed: value - shift for seed, value in a.items()}
    assert stats.paired_difference(a, b).p_value == 1.0


def test_bootstrap_is_scipys_percentile_method() -> None:
    values = np.random.default_rng(3).exponential(size=40)
    ours = stats.bootstrap_interval(values, resamples=20_000)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(5)
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_bootstrap_repeats_itself() -> None:
    assert stats.bootstrap_interval(SAMPLE) == stats.bootstrap_interval(SAMPLE)


def test_proportion_is_the_wilson_formula() -> None:
    k, n, z = 1, 3, scipy.stats.norm.ppf(0.975)
    centre = (k + z**2 / 2) / (n + z**2)
    half = z / (n + z**2) * math.sqrt(k * (n - k) / n + z**2 / 4)
    interval = stats.proportion_interval(k, n)
    assert (interval.low, interval.high) == pytest.approx((centre - half, centre + half))


@pytest.mark.parametrize(("k", "n"), [(0, 0), (4, 3), (-1, 3)])
def test_a_share_of_nothing_is_refused(k: Any, n: Any) -> None:
    with pytest.raises(stats.StatsError, match="is not a share"):
        stats.proportion_interval(k, n)


def test_holm_by_hand() -> None:
    # sorted 0.01 0.02 0.03 0.04 → ×4 ×3 ×2 ×1 = 0.04 0.06 0.06 0.04 → running maximum
    assert stats.holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_none_and_bonferroni(p_values: Any) -> None:
    for p, adjusted in zip(p_values, stats.holm(p_values), strict=True):
        assert p <= adjusted <= min(1.0, len(p_values) * p)


def test_holm_refuses_what_is_no_p_value() -> None:
    with pytest.raises(stats.StatsError, match="not a p-value"):
        stats.holm([0.5, math.nan])


def _variants(
    rng: np.random.Generator, means: dict[str, float], seeds: int, noise: float = 0.1
) -> dict[str, dict[int, float]]:
    shared = rng.normal(size=seeds)
    return {
        name: {seed: mean + shared[seed] + noise * rng.normal() for seed in range(seeds)}
        for name, mean in means.items()
    }


def test_clear_differences_are_ranked() -> None:
    values = _variants(np.random.default_rng(0), {"a": 0.0, "b": 5.0, "c": 9.0}, seeds=5)
    ranks = stats.tie_groups(values)
    assert [(r.name, str(r)) for r in ranks] == [("c", "1"), ("b", "2"), ("a", "3")]


def test_lower_is_better_for_losses() -> None:
    values = _variants(np.random.default_rng(0), {"a": 0.0, "b": 5.0}, seeds=5)
    assert [r.name for r in stats.tie_groups(values, higher_is_better=False)] == ["a", "b"]


def test_what_the_seeds_do_not_separate_is_tied() -> None:
    values = _variants(np.random.default_rng(1), {"a": 1.0, "b": 1.0, "c": 1.0, "d": -9.0}, 5)
    ranks = {r.name: str(r) for r in stats.tie_groups(values)}
    assert ranks == {"a": "1–3 tied", "b": "1–3 tied", "c": "1–3 tied", "d": "4"}


def test_below_five_seeds_nothing_is_ranked() -> None:
    values = _variants(np.random.default_rng(0), {"a": 0.0, "b": 99.0}, seeds=4)
    ranks = stats.tie_groups(values)
    assert [str(r) for r in ranks] == ["unranked", "unranked"]
    assert ranks[0].reason == "4 seeds; a rank needs at least 5"
    assert ranks[0].interval.n == 4


def test_a_variant_with_few_seeds_does_not_stop_the_others() -> None:
    values = _variants(np.random.default_rng(0), {"a": 0.0, "b": 99.0, "c": 50.0}, seeds=5)
    del values["c"][0]
    assert [(r.name, str(r)) for r in stats.tie_groups(values)] == [
        ("b", "1"), ("a", "2"), ("c", "unranked"),
    ]  # fmt: skip


def test_pairs_with_few_common_seeds_are_tied() -> None:
    values = {
        "a": {seed: 0.01 * seed for seed in range(5)},
        "b": {seed: 9 + 0.01 * seed for seed in range(5, 10)},
    }
    assert {str(r) for r in stats.tie_groups(values)} == {"1–2 tied"}


def test_equal_variants_seldom_get_an_order() -> None:
    # Five equal variants, 400 boards: an order on ≤ 5% of them, within binomial noise.
    rng = np.random.default_rng(11)
    wrong = sum(
        any(r.best != 1 for r in stats.tie_groups(_variants(rng, dict.fromkeys("abcde", 0.0), 5)))
        for _ in range(400)
    )
    assert wrong <= scipy.stats.binom.ppf(0.999, 400, 0.05)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.94812, "0.948"), (94.81, "94.8"), (9.996, "10.0"), (99.96, "100"), (1234.5, "1230"),
     (0.0, "0.00"), (1.5e-7, "1.50e-07"), (-3.14159, "-3.14"), (math.nan, "nan")],
)  # fmt: skip
def test_three_significant_digits(value: Any, text: Any) -> None:
    assert stats.significant(value) == text


@pytest.mark.parametrize(
    ("interval", "text"),
    [(stats.Interval(94.81, 94.41, 95.21, 3, 0.95, "t"), "94.8 ±0.4 (n=3)"),
     (stats.Interval(94.81, 94.80, 94.82, 3, 0.95, "t"), "94.8 ±0.01 (n=3)"),
     (stats.Interval(35.8, 32.0, 42.7, 3, 0.95, "bootstrap"), "35.8 [32.0, 42.7] (n=3)"),
     (stats.Interval(0.9481, 0.9441, 0.9521, 3, 0.95, "t").scaled(100), "94.8 ±0.4 (n=3)")],
)  # fmt: skip
def test_an_interval_reads_well(interval: Any, text: Any) -> None:
    assert str(interval) == text


def _covered(function: Any, n: Any, trials: Any, seed: Any) -> Any:
    rng = np.random.default_rng(seed)
    intervals = (function(rng.normal(size=n)) for _ in range(trials))
    return sum(interval.low <= 0 <= interval.high for interval in intervals)


def _few_resamples(values: Any) -> Any:
    return stats.bootstrap_interval(values, resamples=400)


@pytest.mark.parametrize(("function", "share"), [(stats.t_interval, 0.95), (_few_resamples, 0.84)])
def test_coverage_at_five_seeds(function: Any, share: Any) -> None:
    low, high = scipy.stats.binom.interval(0.9999, 1000, share)
    assert low <= _covered(function, 5, 1000, seed=7) <= high


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "n", "low", "high"),
    [(stats.t_interval, 3, 0.945, 0.955), (stats.t_interval, 5, 0.945, 0.955),
     (stats.bootstrap_interval, 5, 0.82, 0.86), (stats.bootstrap_interval, 10, 0.89, 0.92)],
)  # fmt: skip
def test_coverage_to_half_a_percent(function: Any, n: Any, low: Any, high: Any) -> None:
    assert low <= _covered(function, n, 20_000, seed=13) / 20_000 <= high
