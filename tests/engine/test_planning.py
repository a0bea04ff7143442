"""What a run would do, known before anything runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from fake_task import make_cell

from normbench.cells import Cell, Record, Status
from normbench.engine import PlanError, RunPlan, plan
from normbench.engine.costs import Costs
from normbench.engine.execute import execute
from normbench.engine.planning import select
from normbench.store import Store

CELLS = [make_cell(seed) for seed in range(3)]


def measured(cell: Cell, status: Status = "ok", seconds: float = 10.0) -> Record:
    record = execute(cell, device=torch.device("cpu"))
    return dataclasses.replace(record, status=status, wall_seconds=seconds)


def planned(cells: Sequence[Cell], out: Path, *records: Record, retry: bool = False) -> RunPlan:
    for record in records:
        Store(out).append(record)
    return plan(cells, out=out, device="cpu", retry_failed=retry, workers=1)


def test_planning_writes_nothing(tmp_path: Path) -> None:
    planned(CELLS, tmp_path / "results")
    assert list(tmp_path.iterdir()) == []


def test_cells_keep_the_order_of_the_suite(tmp_path: Path) -> None:
    assert list(planned(CELLS[::-1], tmp_path).to_run) == CELLS[::-1]


def test_the_same_work_asked_for_twice_is_done_once(tmp_path: Path) -> None:
    again = dataclasses.replace(CELLS[0], suite="another", variant="another label")
    assert list(planned([*CELLS, again], tmp_path).to_run) == CELLS


@pytest.mark.parametrize("status", ["ok", "diverged", "oom", "unsupported", "error", "timeout"])
def test_a_cell_with_a_record_is_skipped_whatever_its_status(
    tmp_path: Path, status: Status
) -> None:
    result = planned(CELLS, tmp_path, measured(CELLS[1], status))
    assert list(result.to_run) == [CELLS[0], CELLS[2]]
    assert (result.total, result.skipped) == (3, 1)


@pytest.mark.parametrize(
    ("status", "runs"),
    [
        ("ok", False),
        ("diverged", False),
        ("oom", False),
        ("unsupported", False),
        ("error", True),
        ("timeout", True),
    ],
)
def test_only_failures_are_retried(tmp_path: Path, status: Status, runs: bool) -> None:
    result = planned(CELLS[:1], tmp_path, measured(CELLS[0], status), retry=True)
    assert bool(result.to_run) is runs


def test_records_of_other_hardware_do_not_count(tmp_path: Path) -> None:
    elsewhere = dataclasses.replace(measured(CELLS[0]), hardware_class="cuda: other")
    assert planned(CELLS, tmp_path, elsewhere).skipped == 0


def test_what_like_cells_took_is_expected_again(tmp_path: Path) -> None:
    result = planned(CELLS, tmp_path, measured(CELLS[0], seconds=10.0))
    assert result.seconds == (10.0, 10.0)
    assert result.expected_seconds == 20.0


def test_without_like_cells_nothing_is_expected(tmp_path: Path) -> None:
    other = dataclasses.replace(CELLS[0], model="another")
    result = planned(CELLS, tmp_path, measured(other))
    assert result.seconds == (None, None, None)
    assert result.expected_seconds is None


def test_a_failure_does_not_tell_what_a_cell_costs(tmp_path: Path) -> None:
    assert planned(CELLS, tmp_path, measured(CELLS[0], "error")).expected_seconds is None


def test_the_same_variant_tells_more_than_others() -> None:
    costs = Costs()
    costs.observe(dataclasses.replace(CELLS[0], variant="slow"), 100.0)
    costs.observe(dataclasses.replace(CELLS[0], variant="fast"), 1.0)
    assert costs.expect(dataclasses.replace(CELLS[0], variant="fast")) == 1.0
    assert costs.expect(dataclasses.replace(CELLS[0], variant="new")) == 50.5


def test_what_was_never_seen_here_is_expected_by_the_reference_and_this_machines_pace() -> None:
    other = dataclasses.replace(CELLS[0], batch_size=2)
    elsewhere = Costs()
    elsewhere.observe(CELLS[0], 10.0)
    elsewhere.observe(other, 40.0)
    costs = Costs(elsewhere)
    assert (costs.expect(other), costs.seen(other)) == (40.0, False)
    costs.observe(CELLS[0], 15.0)
    assert (costs.expect(CELLS[0]), costs.seen(CELLS[0])) == (15.0, True)
    assert costs.expect(other) == 60.0
    unknown = dataclasses.replace(CELLS[0], model="another")
    assert costs.expect(unknown) is None
    assert costs.total([(unknown, 1.0), (other, 0.5)], workers=1) == 15.0 + 30.0


def test_only_records_of_the_same_sort_of_device_are_borrowed(tmp_path: Path) -> None:
    for hardware, expected in (("cpu: other", 20.0), ("cuda: other", None)):
        elsewhere = dataclasses.replace(measured(CELLS[0], seconds=10.0), hardware_class=hardware)
        folder = tmp_path / hardware[:4]
        handed = plan(CELLS[1:], out=folder, device="cpu", workers=1, elsewhere=[elsewhere])
        found = planned(CELLS[1:], folder, elsewhere)
        for result in (handed, found):
            assert result.expected_seconds == expected
            assert result.borrowed is (expected is not None)


def test_what_was_seen_here_is_not_borrowed(tmp_path: Path) -> None:
    elsewhere = dataclasses.replace(measured(CELLS[0]), hardware_class="cpu: other")
    result = planned(CELLS[1:], tmp_path, elsewhere, measured(CELLS[0], seconds=7.0))
    assert (result.expected_seconds, result.borrowed) == (14.0, False)


def test_no_run_is_shorter_than_its_longest_cell() -> None:
    costs = Costs()
    costs.observe(CELLS[0], 10.0)
    assert costs.total([(CELLS[0], 1.0)], workers=8) == 10.0
    assert costs.total([(CELLS[0], 0.5)] * 4, workers=2) == 10.0


def test_a_damaged_record_file_is_named_in_the_plan(tmp_path: Path) -> None:
    path = Store(tmp_path).append(measured(CELLS[0]))
    path.write_text("{")
    result = planned(CELLS, tmp_path)
    assert result.skipped == 0
    assert path.name in result.problems[0]


def test_no_cells_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="no cells to run"):
        plan([], out=tmp_path)


def test_an_unknown_method_is_found_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="did you mean 'batch_norm'"):
        plan([dataclasses.replace(CELLS[0], method="batch_nrom")], out=tmp_path, device="cpu")


GRID = [
    dataclasses.replace(make_cell(seed), batch_size=batch, variant=variant)
    for seed in (0, 1)
    for batch in (2, 8)
    for variant in ("batch_norm", "group_norm(affine=False, groups=8)")
]


@pytest.mark.parametrize(
    ("filters", "count"),
    [
        ([], 8),
        (["batch_size=2"], 4),
        (["batch_size=2,8"], 8),
        (["batch_size=2", "batch_size=8"], 8),
        (["batch_size=2", "seed=1"], 2),
        (["variant=group_norm(affine=False, groups=8)"], 4),
    ],
)
def test_filters_of_one_key_add_up_and_keys_narrow(filters: list[str], count: int) -> None:
    assert len(select(GRID, filters)) == count


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batch_size", "not KEY=VALUE"),
        ("batch_sise=2", "did you mean 'batch_size'"),
        ("variant=batch_nrom", "fits no cell; did you mean 'batch_norm'"),
        ("batch_size=2,16", "batch_size=16 fits no cell; valid: 2, 8"),
    ],
)
def test_a_filter_that_means_nothing_is_refused(text: str, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        select(GRID, [text])


def test_filters_that_together_leave_nothing_are_refused() -> None:
    odd = dataclasses.replace(GRID[0], seed=7, batch_size=2)
    with pytest.raises(PlanError, match="no cell passes all filters"):
        select([*GRID, odd], ["seed=7", "batch_size=8"])
