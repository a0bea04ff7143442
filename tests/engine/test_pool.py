"""Worker processes: a crash or a hang costs one cell, and nobody is left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from fake_task import make_cell

from normbench.cells import Cell, Record
from normbench.engine import pool
from normbench.engine.events import Progress, Started
from normbench.engine.pool import WorkerError, run_inline, run_pool
from normbench.engine.serve import Setup, throttled

SETUP = Setup(torch.device("cpu"), 1, "tests", ("fake_task",))


@pytest.fixture(autouse=True)
def _nobody_is_left_behind() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []


def run(*cells: Cell, workers: int = 2) -> dict[int, Record]:
    """The records by seed."""
    return {r.cell.seed: r for r in run_pool(cells, SETUP, workers, lambda event: None)}


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        ("die", "worker died: signal 9 (SIGKILL; the system kills so when memory runs out)"),
        ("segfault", "worker died: signal 11 (SIGSEGV)"),
        ("exit", "worker died: exit code 7"),
        ("sys.exit", "worker died: exit code 4"),
    ],
)
def test_a_crash_costs_its_own_cell_only(act: str, reason: str) -> None:
    records = run(make_cell(0), make_cell(1, act), make_cell(2), make_cell(3), workers=1)
    assert {seed: record.status for seed, record in records.items()} == {
        0: "ok", 1: "error", 2: "ok", 3: "ok",
    }  # fmt: skip
    assert records[1].reason == reason


def test_a_crash_leaves_what_the_process_said_last() -> None:
    notes = "\n".join(run(make_cell(0, "segfault"))[0].notes)
    assert "Segmentation fault" in notes
    assert "fake_task.py" in notes


def test_a_hanging_cell_is_killed_at_its_limit() -> None:
    began = time.monotonic()
    records = run(make_cell(0, "sleep", seconds=600, timeout_seconds=0.3), make_cell(1))
    assert (records[0].status, records[0].reason) == (
        "timeout",
        "took longer than its limit of 0.3 s",
    )
    assert records[1].status == "ok"
    assert time.monotonic() - began < 60


def test_a_process_is_used_again_but_not_after_a_failure_or_where_a_cell_says_so() -> None:
    def pids(middle: str) -> set[float]:
        first, last = (make_cell(seed, "sleep", seconds=0) for seed in (0, 2))
        records = run(first, make_cell(1, middle), last, workers=1)
        return {records[0].metrics["pid"], records[2].metrics["pid"]}

    assert len(pids("ok")) == 1
    assert len(pids("fault")) == 2
    assert len(pids("spoil")) == 2


def test_an_idle_process_ends_by_itself_and_a_busy_one_is_killed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    processes = []

    def start(*arguments: Any) -> Any:
        connection, process = pool_start(*arguments)
        processes.append(process)
        return connection, process

    pool_start = pool._start
    monkeypatch.setattr(pool, "_start", start)
    run(make_cell(0), make_cell(1))
    records = run_pool(
        [make_cell(0), make_cell(1, "sleep", seconds=600)], SETUP, 2, lambda event: None
    )
    next(records)
    records.close()
    assert sorted(p.exitcode for p in processes) == [-signal.SIGKILL, 0, 0, 0]


def test_cells_run_at_the_same_time() -> None:
    cells = [make_cell(seed, "sleep", seconds=0.2) for seed in range(2)]
    assert len({record.metrics["pid"] for record in run(*cells).values()}) == 2


def test_what_a_cell_draws_depends_on_neither_worker_nor_predecessor() -> None:
    alone = run(make_cell(5, "draws"))[5].metrics
    after_others = run(*(make_cell(seed, "draws") for seed in range(6)))[5].metrics
    inline = next(run_inline([make_cell(5, "draws")], SETUP, lambda event: None)).metrics
    assert alone == after_others == inline


def test_what_a_worker_prints_stays_out_of_the_drivers_output(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert run(make_cell(0, "print"))[0].status == "ok"
    assert capfd.readouterr().out == ""


@pytest.mark.parametrize("workers", [0, 1])
def test_start_and_progress_are_told(workers: int) -> None:
    told: list[Started | Progress] = []
    cell = make_cell(0)
    source = (
        run_pool([cell], SETUP, 1, told.append)
        if workers
        else run_inline([cell], SETUP, told.append)
    )
    assert next(source).status == "ok"
    source.close()
    assert told == [Started(cell, 0), Progress(cell, 0.5, 0)]


def test_progress_is_told_now_and_then() -> None:
    told: list[float] = []
    tell = throttled(told.append)
    for step in range(1000):
        tell(step / 1000)
    assert told == [0.0]


def test_closing_early_kills_what_runs() -> None:
    cells = [make_cell(0), make_cell(1, "sleep", seconds=600)]
    source = run_pool(cells, SETUP, 2, lambda event: None)
    assert next(source).cell.seed == 0
    began = time.monotonic()
    source.close()
    assert time.monotonic() - began < 10


def test_workers_leave_ctrl_c_to_the_driver() -> None:
    cells = [make_cell(0, "sleep", seconds=1)]

    def interrupt_worker(event: Started | Progress) -> None:
        if isinstance(event, Progress):
            for child in multiprocessing.active_children():
                assert child.pid is not None
                os.kill(child.pid, signal.SIGINT)

    (record,) = run_pool(cells, SETUP, 1, interrupt_worker)
    assert record.status == "ok"


def test_workers_that_cannot_start_are_one_error() -> None:
    broken = Setup(torch.device("cpu"), 1, "tests", ("no_such_module",))
    with pytest.raises(
        WorkerError, match=r"could not start(?s:.*)No module named 'no_such_module'"
    ):
        list(run_pool([make_cell(0)], broken, 1, lambda event: None))
