"""What a user waits for: the command line's cold start, and a swap, against what neither can avoid.

Both sides of a ratio alternate, round by round; the figure is the ratio of the medians.

    pytest benchmarks/test_start.py -s        # prints the ratios
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import timm

from normbench import surgery

STARTS, SWAPS = 7, 7
HELP = ("-m", "normbench", "--help")


def python(*arguments: str) -> Callable[[], float]:
    """Seconds that a fresh Python takes for these arguments."""

    def run() -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
        return time.perf_counter() - began

    return run


def medians(ours: Callable[[], float], theirs: Callable[[], float]) -> tuple[float, float]:
    """Of the seconds that both report, in alternation, after one round that does not count."""
    pairs = [(ours(), theirs()) for _ in range(STARTS + 1)][1:]
    mine, other = zip(*pairs, strict=True)
    return statistics.median(mine), statistics.median(other)


@pytest.mark.parametrize("code", ["pass", "import typer"])
def test_cold_start_of_the_command_line(code: str, benchmark: Any) -> None:
    help_seconds, bare_seconds = medians(python(*HELP), python("-c", code))
    ratio = help_seconds / bare_seconds
    benchmark.group = "cold start"
    benchmark.extra_info |= {"ratio": ratio, "bare_s": bare_seconds}
    benchmark.pedantic(python(*HELP), rounds=1, iterations=1)
    print(
        f"\nnormbench --help: {help_seconds * 1e3:.0f} ms, python -c {code!r}: "
        f"{bare_seconds * 1e3:.0f} ms, ratio {ratio:.2f}"
    )


@pytest.mark.parametrize(
    ("model", "method"), [("resnet18", "group_norm"), ("efficientnet_b0", "proxy_norm")]
)
def test_swap_against_creating_the_model(model: str, method: str, benchmark: Any) -> None:
    swapped, created = [], []
    for counts in [False] + [True] * SWAPS:
        began = time.perf_counter()
        network = timm.create_model(model)
        between = time.perf_counter()
        report = surgery.swap(network, method)
        ended = time.perf_counter()
        assert report.replaced == report.found
        if counts:
            created.append(between - began)
            swapped.append(ended - between)
    ours, theirs = statistics.median(swapped), statistics.median(created)
    benchmark.group = "swap"
    benchmark.extra_info |= {"ratio": ours / theirs, "create_s": theirs}
    benchmark.pedantic(
        surgery.swap,
        setup=lambda: ((timm.create_model(model), method), {}),
        rounds=1,
    )
    print(
        f"\nswap {model} to {method}: {ours * 1e3:.1f} ms, timm.create_model: "
        f"{theirs * 1e3:.1f} ms, ratio {ours / theirs:.2f}"
    )
