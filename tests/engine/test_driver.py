"""A run from plan to summary: records first, everything else after."""

from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fake_task import make_cell

import normbench
from normbench import spool
from normbench.cells import Cell, Record
from normbench.engine import RunSummary, driver
from normbench.engine.events import Event, Finished, Interrupted, Planned, Progress, Started
from normbench.spool import StoreError
from normbench.store import Store


def run(cells: Sequence[Cell], out: Path, workers: int = 0, **options: Any) -> RunSummary:
    return normbench.run(list(cells), out=out, device="cpu", workers=workers, **options)


def three(act: str = "ok") -> list[Cell]:
    return [make_cell(0), make_cell(1, act), make_cell(2)]


class Collector:
    """A sink that remembers what it got, and whether it was on disk by then."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.records: list[Record] = []
        self.problems: list[str] = []

    def write(self, record: Record) -> None:
        assert record in self.store.records()
        self.records.append(record)

    def close(self) -> None:
        raise AssertionError("whoever opened a sink closes it")


class Broken(Collector):
    def write(self, record: Record) -> None:
        raise ConnectionError("the server is gone")


@pytest.mark.parametrize("workers", [0, 2])
def test_every_cell_leaves_a_record(tmp_path: Path, workers: int) -> None:
    summary = run(three(), tmp_path, workers)
    assert (summary.total, summary.skipped, summary.measured, summary.failed) == (3, 0, 3, 0)
    assert sorted(r.cell.seed for r in Store(tmp_path).records()) == [0, 1, 2]
    assert summary.exit_code == 0


def test_a_second_run_has_nothing_to_do(tmp_path: Path) -> None:
    first = run(three(), tmp_path)
    second = run(three(), tmp_path)
    assert (second.skipped, second.measured) == (3, 0)
    assert second.records == first.records
    assert second.exit_code == 0


def test_a_longer_list_continues_where_the_shorter_stopped(tmp_path: Path) -> None:
    run(three()[:1], tmp_path)
    summary = run(three(), tmp_path)
    assert (summary.skipped, summary.measured) == (1, 2)


def test_a_failed_cell_runs_again_only_when_asked(tmp_path: Path) -> None:
    assert run(three("fault"), tmp_path).failed == 1
    assert run(three("fault"), tmp_path).skipped == 3
    retried = run(three("fault"), tmp_path, retry_failed=True)
    assert (retried.skipped, retried.failed) == (2, 1)
    assert len(Store(tmp_path).records()) == 3


@pytest.mark.parametrize(
    ("act", "code"), [("ok", 0), ("refuse", 0), ("diverge", 0), ("fault", 1), ("mistake", 1)]
)
def test_the_exit_code_says_whether_a_cell_failed(tmp_path: Path, act: str, code: int) -> None:
    assert run(three(act), tmp_path).exit_code == code
    assert run(three(act), tmp_path).exit_code == code


def test_a_run_that_measured_nothing_fails(tmp_path: Path) -> None:
    assert run([make_cell(0, "refuse")], tmp_path).exit_code == 1


def test_events_tell_the_story_in_order(tmp_path: Path) -> None:
    run(three()[:1], tmp_path)
    events: list[Event] = []
    run(three(), tmp_path, on_event=events.append)
    assert [type(event) for event in events] == [
        Planned, Started, Progress, Finished, Started, Progress, Finished,
    ]  # fmt: skip
    planned, last = events[0], events[-1]
    assert isinstance(planned, Planned)
    assert isinstance(last, Finished)
    assert (planned.total, planned.skipped, planned.to_run) == (3, 1, 2)
    assert planned.expected_seconds is not None
    assert (last.done, last.total, last.eta_seconds) == (3, 3, 0.0)


def test_a_sink_hears_of_records_that_are_on_disk(tmp_path: Path) -> None:
    sink = Collector(Store(tmp_path))
    summary = run(three("fault"), tmp_path, sinks=[sink])
    assert tuple(sink.records) == summary.records


def test_a_broken_sink_costs_no_record(tmp_path: Path) -> None:
    summary = run(three(), tmp_path, sinks=[Broken(Store(tmp_path))])
    assert summary.measured == 3
    assert len(summary.problems) == 3
    assert "the server is gone" in summary.problems[0]
    assert len(Store(tmp_path).records()) == 3


@pytest.mark.parametrize("workers", [0, 1])
def test_an_interrupt_returns_and_the_next_run_continues(tmp_path: Path, workers: int) -> None:
    events: list[Event] = []

    def interrupt(event: Event) -> None:
        events.append(event)
        if isinstance(event, Started) and event.cell.seed == 1:
            raise KeyboardInterrupt

    summary = run(three(), tmp_path, workers, on_event=interrupt)
    assert summary.interrupted
    assert summary.exit_code == 130
    assert events[-1] == Interrupted(done=1, total=3, in_flight=1)
    assert run(three(), tmp_path).skipped == 1


def test_a_folder_that_cannot_be_written_is_found_before_the_first_cell(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    events: list[Event] = []
    with pytest.raises(StoreError, match="cannot write records to"):
        run(three(), tmp_path / "file", on_event=events.append)
    assert events == []


def test_a_disk_that_fills_up_stops_the_run_and_keeps_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync, calls = os.fsync, iter(range(100))

    def full_later(descriptor: int) -> None:
        if next(calls) >= 4:  # the probe and the first record: two each, file and folder
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full_later)
        with pytest.raises(StoreError, match=r"No space left.*run the same command again"):
            run(three(), tmp_path)
    assert [p.suffix for p in (tmp_path / "spool").iterdir()] == [".json"]
    assert run(three(), tmp_path).skipped == 1


def test_a_corrupt_record_file_is_named_and_its_cell_measured_again(tmp_path: Path) -> None:
    run(three()[:1], tmp_path)
    (part,) = Store(tmp_path).paths()
    part.write_bytes(b"PAR1 no more")
    summary = run(three(), tmp_path)
    assert summary.measured == 3
    assert part.name in summary.problems[0]
    assert part.read_bytes() == b"PAR1 no more"


def test_the_spool_is_compacted_in_long_runs_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "COMPACT_AT", 2)
    run(three(), tmp_path)
    assert len(list((tmp_path / "parts").iterdir())) == 2
    assert spool.list_files(tmp_path / "spool") == []


def test_the_results_folder_may_come_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NORMBENCH_RESULTS", str(tmp_path / "mine"))
    normbench.run([make_cell(0)], device="cpu", workers=0)
    assert len(Store(tmp_path / "mine").records()) == 1


def test_filters_choose_cells(tmp_path: Path) -> None:
    assert run(three(), tmp_path, filters=["seed=0,2"]).total == 2


def test_who_measured_is_in_every_record(tmp_path: Path) -> None:
    cells = [make_cell(0), make_cell(1, "die")]
    records = run(cells, tmp_path, workers=1, submitter="ada").records
    assert {record.submitter for record in records} == {"ada"}


def test_a_lost_cell_has_the_id_that_a_measured_one_would_have(tmp_path: Path) -> None:
    cell = make_cell(0, "die")
    lost = run([cell], tmp_path, workers=1).records[0]
    fine = dataclasses.replace(cell, config={**cell.config, "act": "ok"})
    measured = run([fine], tmp_path, workers=1).records[0]
    assert lost.environment == measured.environment
    assert lost.hardware_class == measured.hardware_class
