"""Intervals, paired comparisons and tie groups: what may be said about a handful of seeds.

Every function takes plain numbers and returns frozen dataclasses, so that it serves the command
line, the boards and a notebook alike. docs/statistics.md says why these and not others; the short
version: at five seeds the t interval covers what it promises and the bootstrap does not, methods
are compared seed by seed, and an order that the seeds do not support is not shown.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats as distributions

RANKING_SEEDS = 5
"""Seeds below which results are shown but not ranked."""

Method = Literal["t", "paired t", "bootstrap", "wilson", "rounds"]


class StatsError(ValueError):
    """Numbers that no interval can be made of, with the reason."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean that never stands alone.

    Attributes:
        mean: the estimate, in the unit of the values.
        low: lower bound; NaN where one value gives none.
        high: upper bound; NaN where one value gives none.
        n: how many values (seeds, trials) it rests on.
        level: nominal coverage, 0.95 for instance.
        method: how the bounds were computed; `rounds`: of a single record, from its rounds.
    """

    mean: float
    low: float
    high: float
    n: int
    level: float
    method: Method

    @property
    def bounded(self) -> bool:
        """Whether there are bounds: False for a single value."""
        return not math.isnan(self.low)

    def scaled(self, factor: float) -> Interval:
        """The interval in another unit: `scaled(100)` turns a fraction into percent."""
        low, high = sorted((self.low * factor, self.high * factor))
        return Interval(self.mean * factor, low, high, self.n, self.level, self.method)

    def __str__(self) -> str:
        """`94.8 ±0.4 (n=3)`, `32.7 [30.1, 42.7] (n=3)` if lopsided, `94.8 (n=1)`."""
        text, decimals = significant(self.mean), _decimals(self.mean)
        if not self.bounded:
            return f"{text} (n={self.n})"
        below, above = self.mean - self.low, self.high - self.mean
        if math.isclose(below, above, rel_tol=1e-6, abs_tol=1e-12):
            return f"{text} ±{_width(above, decimals)} (n={self.n})"
        shown = max(decimals, 0)
        return f"{text} [{self.low:.{shown}f}, {self.high:.{shown}f}] (n={self.n})"


@dataclass(frozen=True, slots=True)
class PairedDifference(Interval):
    """Interval for the mean of a − b over the seeds that both have.

    Attributes:
        seeds: the seeds used, sorted.
        unpaired: seeds that only one side has, left out.
        p_value: of the two-sided paired t-test; NaN with one pair, 1 where all differences are
            equal, since a spread of zero says nothing of how they vary.
    """

    seeds: tuple[int, ...]
    unpaired: tuple[int, ...]
    p_value: float


@dataclass(frozen=True, slots=True)
class Rank:
    """Where a variant stands.

    Attributes:
        name: the variant.
        interval: its mean over its own seeds.
        best: 1 + the number of variants that beat it significantly; None if unranked.
        worst: the number of ranked variants − those it beats significantly; None if unranked.
        reason: why it is unranked; empty otherwise.
    """

    name: str
    interval: Interval
    best: int | None
    worst: int | None
    reason: str = ""

    def __str__(self) -> str:
        """`1`, `1–3 tied` or `unranked`."""
        if self.best is None or self.worst is None:
            return "unranked"
        return f"{self.best}" if self.best == self.worst else f"{self.best}–{self.worst} tied"


def t_interval(values: Iterable[float], level: float = 0.95) -> Interval:
    """Student's t interval for the mean: mean ± t(n−1)·s/√n.

    Values that are all equal give an interval of no width: right for a count that is the same in
    every run, and a reason to look twice at anything else.

    Args:
        values: one number per seed.
        level: nominal coverage.

    Raises:
        StatsError: if there are no values, one is not finite, or the level is not in (0, 1).
    """
    array = _checked(values, level)
    mean, half = _t_half_width(array, level)
    return Interval(mean, mean - half, mean + half, array.size, level, "t")


def paired_difference(
    a: Mapping[int, float], b: Mapping[int, float], level: float = 0.95
) -> PairedDifference:
    """Interval for the mean difference a − b, seed by seed.

    Equal seeds share initial weights and data order, so what they have in common cancels.

    Args:
        a: value of each seed.
        b: the same of the other variant.
        level: nominal coverage.

    Raises:
        StatsError: if no seed is common to both, or a value is not finite.
    """
    seeds = sorted(a.keys() & b.keys())
    if not seeds:
        raise StatsError(
            f"nothing to pair: the seeds {sorted(a)} and {sorted(b)} have none in common"
        )
    array = _checked((a[seed] - b[seed] for seed in seeds), level)
    mean, half = _t_half_width(array, level)
    return PairedDifference(
        mean, mean - half, mean + half, len(seeds), level, "paired t",
        tuple(seeds), tuple(sorted(a.keys() ^ b.keys())), _paired_p(array),
    )  # fmt: skip


def bootstrap_interval(
    values: Iterable[float], level: float = 0.95, *, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Percentile bootstrap interval for the mean. Too narrow for few seeds.

    At n = 5 a nominal 95% covers only about 84% (tests/test_stats.py simulates it), at n = 10
    about 90%: use it to describe many samples of a skewed quantity, and `t_interval` for seeds.

    Args:
        values: the sample.
        level: nominal coverage.
        resamples: how many means are drawn.
        seed: of the resampling, so that the same values give the same bounds.

    Raises:
        StatsError: as `t_interval`.
    """
    array = _checked(values, level)
    if array.size == 1:
        mean = float(array[0])
        return Interval(mean, math.nan, math.nan, 1, level, "bootstrap")
    picks = np.random.default_rng(seed).integers(0, array.size, (resamples, array.size))
    tail = (1 - level) / 2
    low, high = np.quantile(array[picks].mean(axis=1), [tail, 1 - tail])
    return Interval(float(array.mean()), float(low), float(high), array.size, level, "bootstrap")


def proportion_interval(successes: int, n: int, level: float = 0.95) -> Interval:
    """Wilson score interval for a share, such as runs that diverged.

    Raises:
        StatsError: if n < 1 or the successes are not between 0 and n.
    """
    if n < 1 or not 0 <= successes <= n:
        raise StatsError(f"{successes} of {n} is not a share; expected 0 ≤ successes ≤ n, n ≥ 1")
    _check_level(level)
    bounds = distributions.binomtest(successes, n).proportion_ci(level, method="wilson")
    return Interval(successes / n, float(bounds.low), float(bounds.high), n, level, "wilson")


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted by Holm's step-down method, in the order given.

    Rejecting where the adjusted value is ≤ α keeps the chance of even one false rejection among
    all m tests at α, whatever their dependence (Holm, Scand. J. Statist. 6, 1979).

    Raises:
        StatsError: if one is not between 0 and 1.
    """
    if bad := [p for p in p_values if not 0 <= p <= 1]:
        raise StatsError(f"{bad[0]} is not a p-value; expected 0 to 1")
    adjusted, largest = [0.0] * len(p_values), 0.0
    for position, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - position) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def tie_groups(
    values: Mapping[str, Mapping[int, float]],
    *,
    higher_is_better: bool = True,
    level: float = 0.95,
    min_seeds: int = RANKING_SEEDS,
) -> list[Rank]:
    """Rank variants as far as the seeds allow, and no further.

    Every pair is compared by a paired t-test over its common seeds, corrected over all pairs by
    Holm. A variant's rank runs from 1 + the number that beat it to m − the number it beats:
    `1–3 tied`. With probability `level` all ranges of one call contain the true ranks at once:
    a guarantee for one column of a board (one batch size), not for its columns together. A pair
    with fewer than `min_seeds` common seeds, or whose differences are all equal, counts as tied.

    Args:
        values: value of each seed, by variant.
        higher_is_better: False for losses, times and bytes.
        level: 1 − the chance of any false order among these variants.
        min_seeds: seeds below which a variant is shown, not ranked.

    Returns:
        Ranked variants, best first; then the unranked ones with the reason, by name.

    Raises:
        StatsError: if a variant has no values, or one is not finite.
    """
    intervals = {name: t_interval(by_seed.values(), level) for name, by_seed in values.items()}
    ranked = sorted(name for name in values if len(values[name]) >= min_seeds)
    unranked = [
        Rank(name, intervals[name], None, None, _too_few(intervals[name].n, min_seeds))
        for name in sorted(values.keys() - set(ranked))
    ]
    beats = _significant_wins(values, ranked, higher_is_better, level, min_seeds)
    ranks = [
        Rank(
            name, intervals[name],
            1 + sum((other, name) in beats for other in ranked),
            len(ranked) - sum((name, other) in beats for other in ranked),
        )
        for name in ranked
    ]  # fmt: skip
    sign = -1.0 if higher_is_better else 1.0
    ranks.sort(key=lambda r: (r.best or 0, r.worst or 0, sign * r.interval.mean, r.name))
    return ranks + unranked


def significant(value: float, digits: int = 3) -> str:
    """`value` to that many significant digits, without an exponent where it reads well.

    `0.94812 → 0.948`, `1234.5 → 1230`, `2.0 → 2.00`, `1.5e-7 → 1.50e-07`.
    """
    if not math.isfinite(value):
        return str(value)
    if value != 0 and not 1e-4 <= abs(value) < 1e7:
        return f"{value:.{digits - 1}e}"
    decimals = _decimals(value, digits)
    rounded = round(value, decimals)  # also to the left of the point, unlike a format
    return f"{rounded:.{max(decimals, 0)}f}"


def _decimals(value: float, digits: int = 3) -> int:
    """Decimals that show `digits` significant digits of `value`; negative left of the point."""
    if value == 0 or not math.isfinite(value):
        return digits - 1
    exponent = int(f"{value:.{digits - 1}e}".rpartition("e")[2])  # of the rounded value: 9.996 → 1
    return digits - 1 - exponent


def _width(half: float, decimals: int) -> str:
    """A half-width to the mean's decimals; one digit of its own where those would show 0."""
    shown = max(decimals, 0)
    return f"{half:.{shown}f}" if half == 0 or half >= 0.5 * 10**-shown else significant(half, 1)


def _checked(values: Iterable[float], level: float) -> NDArray[np.float64]:
    _check_level(level)
    array = np.asarray(list(values), dtype=np.float64)
    if array.size == 0:
        raise StatsError("no values, so no interval")
    if not np.isfinite(array).all():
        bad = float(array[~np.isfinite(array)][0])
        raise StatsError(f"a value is {bad}; leave failed runs out and report them as such")
    return array


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise StatsError(f"level is {level}; expected a share between 0 and 1, such as 0.95")


def _t_half_width(array: NDArray[np.float64], level: float) -> tuple[float, float]:
    mean = float(array.mean())
    if array.size == 1:
        return mean, math.nan
    error = float(array.std(ddof=1)) / math.sqrt(array.size)
    return mean, float(distributions.t.ppf((1 + level) / 2, array.size - 1)) * error


def _paired_p(differences: NDArray[np.float64]) -> float:
    """Two-sided p of the mean difference; 1 where all differences are equal.

    The t-test has no answer there. Equal differences come from a metric with few values, or from
    runs that did not depend on the seed: neither is evidence of certainty.
    """
    n, mean = differences.size, float(differences.mean())
    if n == 1:
        return math.nan
    error = float(differences.std(ddof=1)) / math.sqrt(n)
    # Equal differences leave rounding noise as their deviation. It is that of the values, which
    # may be a thousand times the mean difference; no true spread is as small as this beside it.
    if error <= 1e-9 * abs(mean) or error == 0:
        return 1.0
    return float(2 * distributions.t.sf(abs(mean) / error, n - 1))


def _significant_wins(
    values: Mapping[str, Mapping[int, float]],
    names: Sequence[str],
    higher_is_better: bool,
    level: float,
    min_seeds: int,
) -> set[tuple[str, str]]:
    """Pairs (winner, loser) that survive Holm's correction over all pairs."""
    pairs: list[tuple[str, str]] = []
    p_values: list[float] = []
    for a, b in combinations(names, 2):
        common = values[a].keys() & values[b].keys()
        if len(common) < max(min_seeds, 2):
            pairs.append((a, b))
            p_values.append(1.0)  # no evidence either way, and it still counts as a comparison
            continue
        difference = paired_difference(values[a], values[b])
        a_wins = (difference.mean > 0) == higher_is_better
        pairs.append((a, b) if a_wins else (b, a))
        p_values.append(difference.p_value)
    adjusted = holm(p_values)
    return {pair for pair, p in zip(pairs, adjusted, strict=True) if p <= 1 - level}


def _too_few(n: int, min_seeds: int) -> str:
    return f"{n} seed{'' if n == 1 else 's'}; a rank needs at least {min_seeds}"
