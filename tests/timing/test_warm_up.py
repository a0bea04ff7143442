"""Warm-up until the times have settled."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from normbench.timing.warm_up import MOST, SECONDS, WarmUp, warm_up


def timer(times: Iterable[float]) -> Callable[[], float]:
    return iter(times).__next__


def still() -> float:
    return 0.0


def test_it_ends_when_two_successive_times_agree() -> None:
    assert warm_up(timer([9.0, 5.0, 2.0, 1.0, 0.95, 7.0]), still) == WarmUp(5, True)


def test_two_runs_are_the_least() -> None:
    assert warm_up(timer([1.0, 1.0, 1.0]), still) == WarmUp(2, True)


def test_times_that_never_settle_end_after_the_most_runs() -> None:
    assert warm_up(timer([1.0, 2.0] * MOST), still) == WarmUp(MOST, False)


def test_times_that_never_settle_end_when_the_time_is_up() -> None:
    clock = iter([0.0, 0.1, 0.2, SECONDS + 1])
    assert warm_up(timer([1.0, 2.0] * 9), lambda: next(clock)) == WarmUp(4, False)
