"""Calls in processes of their own: values, errors, crashes, limits."""

import os
import time

import pytest
import torch

from normbench.engine.isolation import Limits, Lost, call_each

LIMITS = Limits(seconds=60.0, gigabytes=4.0)


def double(number: int) -> int:
    print("this must not reach the terminal")
    return 2 * number


def misbehave(how: str) -> str:
    if how == "raise":
        raise ValueError("no\n luck")
    if how == "crash":
        os.abort()
    if how == "hang":
        time.sleep(60)
    if how == "eat":
        held = []
        while True:
            held.append(torch.ones(10_000_000))
    return how


def test_values_come_by_key(capfd: pytest.CaptureFixture[str]) -> None:
    calls = {key: (number,) for key, number in (("a", 1), ("b", 2), ("c", 3))}
    assert dict(call_each(calls, double, 2, LIMITS)) == {"a": 2, "b": 4, "c": 6}
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("how", "limits", "reason"),
    [
        ("raise", LIMITS, "no luck"),
        ("crash", LIMITS, "its process died: signal 6 (SIGABRT)"),
        ("hang", Limits(seconds=3.0), "takes more than 3 s"),
        ("eat", Limits(gigabytes=1.5), "takes more than 1.5 GB of memory"),
    ],
)
def test_a_call_that_fails_costs_only_itself(how: str, limits: Limits, reason: str) -> None:
    calls = {"good": ("fine",), "bad": (how,)}
    results = dict(call_each(calls, misbehave, 1, limits))
    assert results == {"good": "fine", "bad": Lost(reason)}


def test_closing_ends_what_still_runs() -> None:
    began = time.monotonic()
    results = call_each({"fine": ("fine",), "hang": ("hang",)}, misbehave, 2, LIMITS)
    assert next(results) == ("fine", "fine")
    results.close()
    assert time.monotonic() - began < 30


def test_threads_are_those_of_the_limits() -> None:
    assert dict(call_each({0: ()}, torch.get_num_threads, 1, Limits(threads=1))) == {0: 1}
