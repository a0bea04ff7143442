"""A cell of task `layer` under pytest-benchmark, with what an import of its JSON needs."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from normbench import benchmark_json, registry
from normbench.cells import Cell
from normbench.engine.execute import REFUSAL, now
from normbench.engine.numerics import reproducible
from normbench.tasks import layer
from normbench.timing.contestants import OURS
from normbench.timing.in_step import in_step
from normbench.timing.layers import REFERENCE, Contest, works


def measured(benchmark: Any, cell: Cell, device: torch.device) -> dict[str, float]:
    """The metrics of the record to come; empty where benchmarks are disabled.

    pytest-benchmark times the method's layer. The others are timed before it in even rounds, after
    it in odd ones, all in the setups of its rounds: who always came second would have an advantage.
    """
    started_at, began = now(), time.perf_counter()
    with _contest(cell, device) as contest:
        rounds = layer.rounds(layer.warmed_up(contest))
        others: dict[str, list[float]] = {name: [] for name in contest.names if name != OURS}
        turns = itertools.count()

        def time_the_others(until: int) -> None:
            while len(others[REFERENCE]) < until:
                for name, seconds in others.items():
                    seconds.append(contest.seconds(name))

        def before() -> None:
            turn = next(turns)
            time_the_others(turn + 1 - turn % 2)
            contest.lead(OURS)

        benchmark.pedantic(contest.work, args=(OURS,), setup=before, rounds=rounds)
        time_the_others(rounds)
    if benchmark.stats is None:
        return {}
    ours = benchmark.stats.stats.data
    # Profiling, --benchmark-cprofile, has a round of its own.
    others = {name: seconds[: len(ours)] for name, seconds in others.items()}
    benchmark.extra_info[benchmark_json.KEY] = benchmark_json.described(
        cell, device, others, started_at=started_at, wall_seconds=time.perf_counter() - began
    )
    return dict(layer.outcome(layer.entries_of({OURS: ours, **others})).metrics)


@contextlib.contextmanager
def _contest(cell: Cell, device: torch.device) -> Iterator[Contest]:
    """The cell's contestants, in the state that a run of the cell would have; skips refusals."""
    with reproducible(cell.seed, device, cell.config["threads"]), layer.conditions(cell, device):
        try:
            if cell.config["processes"] > 1:
                with in_step(cell, device) as contest:
                    yield contest
            else:
                runs = {name: make() for name, make in works(cell, device).items()}
                yield Contest(device, runs)
        except ValueError as error:
            if not isinstance(error, registry.UnsupportedError) and REFUSAL not in str(error):
                raise
            pytest.skip(" ".join(str(error).split()))


def ratio(metrics: dict[str, float]) -> str:
    """`1.23 [1.20, 1.27]`."""
    text = f"{metrics['ratio']:.2f}"
    if "ratio_low" in metrics:
        text += f" [{metrics['ratio_low']:.2f}, {metrics['ratio_high']:.2f}]"
    return text
