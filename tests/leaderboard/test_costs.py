"""Cost boards: what may be compared, which record counts, and what an interval is over."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import synthetic_records as synthetic
from synthetic_costs import CUDA, LAYER, THROUGHPUT, layer, memory, throughput

from normbench.cells import Record
from normbench.leaderboard import catalogue
from normbench.leaderboard.costs import CostBoard, CostEntry, Figure, cost_boards
from normbench.stats import t_interval
from normbench.store import Store

MakeCosts = Callable[..., list[CostBoard]]
GROUP: dict[str, Any] = {"method": "group_norm", "variant": "group_norm", "params": {"groups": 32}}
EARLY, LATE = "2026-01-01T00:00:00Z", "2026-03-01T00:00:00Z"


@pytest.fixture
def costs_of(tmp_path: Path, catalogue_file: Path) -> MakeCosts:
    def make(*records: Record) -> list[CostBoard]:
        frame = Store(synthetic.store(tmp_path / "results", records)).read()
        return cost_boards(frame, catalogue.load(catalogue_file))

    return make


def only(boards: list[CostBoard]) -> CostEntry:
    [board] = boards
    [entry] = board.entries
    return entry


def ratio(boards: list[CostBoard], name: str = "ratio") -> Figure:
    found = only(boards).ratio(name)
    assert found is not None
    return found


def config(**changed: Any) -> dict[str, Any]:
    return {"config": {**THROUGHPUT, **changed}}


@pytest.mark.parametrize(
    "other",
    [
        {"hardware_class": CUDA},
        {"hardware_class": "cpu-other"},
        {"model": "resnet50"},
        {"model_args": {"width": 2}},
        {"precision": "bf16"},
        {"protocol": 2},
        config(mode="forward"),
        config(layout="nhwc"),
        config(image_size=32),
        config(compile=True),
        config(threads=1),
        config(something_new=1),
    ],
    ids=str,
)
def test_what_cannot_be_compared_is_on_boards_of_its_own(
    costs_of: MakeCosts, other: dict[str, Any]
) -> None:
    made = costs_of(
        throughput(1.2), throughput(1.4, **GROUP), throughput(1.8, **{**GROUP, **other})
    )
    found = [[e.ratio().value for e in board.entries] for board in made]  # type: ignore[union-attr]
    assert sorted(found) == [[1.2, 1.4], [1.8]]


def test_tasks_are_never_mixed(costs_of: MakeCosts) -> None:
    made = costs_of(throughput(), memory(), layer(), synthetic.record())
    assert [board.task for board in made] == ["throughput", "memory", "layer"]


@pytest.mark.parametrize(
    "same", [{"suite": "another"}, config(timeout_seconds=1), {"batch_size": 2}], ids=str
)
def test_what_makes_no_difference_opens_no_board(costs_of: MakeCosts, same: dict[str, Any]) -> None:
    assert len(costs_of(throughput(), throughput(**{**GROUP, **same}))) == 1


def test_columns_are_batch_sizes_or_shapes_of_a_layer(costs_of: MakeCosts) -> None:
    wide = {"config": {**LAYER, "channels": 256}}
    two = {"config": {**LAYER, "processes": 2}}
    speed, alone, spread = costs_of(
        throughput(batch_size=32), throughput(batch_size=2), layer(**wide), layer(), layer(**two)
    )
    assert speed.columns == ((2,), (32,))
    assert alone.columns == ((32, 64, 32, 32), (32, 256, 32, 32))
    assert spread.config["processes"] == 2


def test_one_record_has_the_interval_of_its_rounds(costs_of: MakeCosts) -> None:
    assert ratio(costs_of(throughput(1.2, 0.05))) == Figure(1.2, 1.15, 1.25, 1, "rounds")


def test_few_rounds_give_no_interval(costs_of: MakeCosts) -> None:
    found = ratio(costs_of(throughput(1.2, None)))
    assert (found.value, found.over, found.bounded, found.apart) == (1.2, "", False, False)
    assert math.isnan(found.low)


def test_several_seeds_give_their_mean_and_a_t_interval(costs_of: MakeCosts) -> None:
    values = (1.1, 1.2, 1.6)
    found = ratio(costs_of(*(throughput(v, seed=i) for i, v in enumerate(values))))
    spread = t_interval(values)
    assert found == Figure(spread.mean, spread.low, spread.high, 3, "seeds")


def test_counts_need_no_interval(costs_of: MakeCosts) -> None:
    assert ratio(costs_of(memory(1.1)), "saved_ratio") == Figure(1.1, 1.1, 1.1, 1, "count")


def test_the_graphs_ratio_has_its_own_interval(costs_of: MakeCosts) -> None:
    found = ratio(costs_of(throughput(1.44, 0.02, hardware_class=CUDA)), "graph_ratio")
    assert (found.value, found.low) == (pytest.approx(1.2), pytest.approx(1.18))


@pytest.mark.parametrize(
    ("value", "half", "apart"),
    [(1.02, 0.03, False), (1.05, 0.03, True), (0.9, 0.05, True), (1.5, 0.5, False)],
)
def test_apart_from_1_means_that_the_interval_leaves_it_out(
    costs_of: MakeCosts, value: float, half: float, apart: bool
) -> None:
    boards = costs_of(throughput(value, half))
    assert ratio(boards).apart is apart
    assert boards[0].level((32,)) == (int(not apart), 1)


def test_without_an_interval_nothing_is_called_level(costs_of: MakeCosts) -> None:
    [board] = costs_of(throughput(1.0, None))
    assert board.level((32,)) == (0, 0)


def test_of_repeats_the_latest_counts_not_the_best(costs_of: MakeCosts) -> None:
    repeats = (throughput(1.0, started_at=EARLY), throughput(1.5, started_at=LATE))
    assert ratio(costs_of(*repeats)).value == 1.5


@pytest.mark.parametrize("status", ["error", "timeout"])
def test_a_later_fault_hides_no_measurement(costs_of: MakeCosts, status: str) -> None:
    lost = throughput(status=status, reason="no", started_at=LATE)
    assert ratio(costs_of(throughput(1.5, started_at=EARLY), lost)).value == 1.5


@pytest.mark.parametrize("status", ["oom", "unsupported", "error", "timeout"])
def test_a_failure_is_an_entry_with_its_reason(costs_of: MakeCosts, status: str) -> None:
    [board] = costs_of(throughput(status=status, reason="because"))
    found = only([board])
    assert (found.failures, found.reasons, found.ratio()) == ({status: 1}, ("because",), None)
    assert board.failures == [found]


def test_what_a_failed_run_measured_does_not_count(costs_of: MakeCosts) -> None:
    lost = replace(throughput(status="error"), metrics={"ratio": 1.0})
    assert only(costs_of(lost)).ratio() is None


def test_current_code_replaces_later_records_of_older_code(costs_of: MakeCosts) -> None:
    older = throughput(1.9, code_hash="0ld", started_at=LATE, seed=1)
    boards = costs_of(throughput(1.2, started_at=EARLY), older)
    assert (ratio(boards).value, only(boards).older_code) == (1.2, False)


def test_older_code_alone_is_marked(costs_of: MakeCosts) -> None:
    assert only(costs_of(throughput(code_hash="0ld"))).older_code


def test_a_record_of_the_eager_path_never_enters(costs_of: MakeCosts) -> None:
    eager = throughput(0.5, fallback="no CUDA", started_at=LATE)
    assert ratio(costs_of(throughput(1.5, started_at=EARLY), eager)).value == 1.5
    assert costs_of(memory(fallback="no CUDA"))[-1].task == "throughput"


def test_rows_stand_by_family_and_name_not_by_ratio(costs_of: MakeCosts) -> None:
    renorm = {"method": "batch_renorm", "variant": "batch_renorm", "params": {}}
    [board] = costs_of(throughput(0.5, **renorm), throughput(0.9, **GROUP), throughput(3.0))
    assert [v.method for v in board.variants] == ["batch_norm", "group_norm", "batch_renorm"]
    assert [v.family for v in board.variants] == ["batch", "group", ""]


def test_the_boards_own_check_is_batch_norm_against_itself(costs_of: MakeCosts) -> None:
    special = {"variant": "batch_norm(eps=0.001)", "params": {"eps": 1e-3}}
    [board] = costs_of(throughput(1.1, **special), throughput(1.0), throughput(2.0, **GROUP))
    assert board.null is not None
    assert board.null.name == "batch_norm(eps=1e-05)"
    [without] = costs_of(memory(2.0, **GROUP))[1:]
    assert without.null is None
