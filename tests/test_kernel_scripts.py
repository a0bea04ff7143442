"""The cells, tables and sweep of `make gpu`'s kernel stages, where there is no GPU."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from normbench.cells import Cell, Record
from normbench.engine.execute import execute, identify
from normbench.engine.worker import read_cells

ROOT = Path(__file__).parents[1]
NAMES = ("kernel_cells", "kernel_targets", "kernel_table", "kernel_tune", "source_tree")
CARD = "cuda: NVIDIA H200"


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The scripts as modules: `scripts("kernel_cells")`."""
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "timing"))
    yield __import__
    for name in (*NAMES, "made_up_watch"):
        sys.modules.pop(name, None)


def record(cell: Cell, **changes: Any) -> Record:
    """A record of this cell from a card, `ok` unless said otherwise."""
    work, code_hash, protocol = identify(cell)
    values: dict[str, Any] = {
        "record_id": work, "cell_id": work, "cell": cell, "code_hash": code_hash,
        "protocol": protocol, "status": "ok", "reason": "", "metrics": {}, "curve": (),
        "trials": (), "samples": (), "slots": {}, "environment": {}, "hardware_class": CARD,
        "submitter": "tests", "started_at": "2026-01-01T00:00:00+00:00", "wall_seconds": 1.0,
    }  # fmt: skip
    return Record(**(values | changes))


def kernel_metrics(cell: Cell, ratio: float = 1.5, share: float = 0.95) -> dict[str, float]:
    """Ours takes a nanosecond for each thousand elements, every peer `ratio` times that."""
    shape = (cell.batch_size, cell.config["channels"], cell.config["height"], cell.config["width"])
    seconds = torch.Size(shape).numel() * 1e-12
    metrics = {"peak_memory_bytes": 1e6, "forward_launches": 3.0, "backward_launches": 3.0}
    for part in ("forward", "backward", "both"):
        metrics[f"graph_{part}_seconds"] = seconds
        metrics[f"graph_{part}_share_of_copy"] = share
        for peer in cell.config["peers"]:
            metrics[f"{peer}_graph_{part}_seconds"] = ratio * seconds
            metrics[f"{peer}_graph_{part}_ratio"] = ratio
    return metrics


def test_resnet50_has_the_slots_that_are_known_of_it(scripts: Any) -> None:
    slots = scripts("kernel_cells").resnet50_slots()
    assert sum(slot.count for slot in slots) == 53
    assert sum(slot.elements for slot in slots) == 11_113_984
    by_form = {
        form: sum(slot.count for slot in slots if slot.form == form)
        for form in ("none", "relu", "add_relu")
    }
    assert by_form == {"none": 4, "relu": 33, "add_relu": 16}
    assert (slots[0].form, slots[0].channels, slots[0].size, slots[0].count) == (
        "add_relu", 256, 56, 3,
    )  # fmt: skip


def test_the_cells_are_cells_no_work_is_asked_for_twice_and_the_main_ones_come_first(
    scripts: Any,
) -> None:
    module: ModuleType = scripts("kernel_cells")
    cells = [*module.kernel_cells(), *module.step_cells()]
    lines = [json.dumps(cell.to_json()) for cell in cells]
    assert read_cells(lines) == cells
    assert len({identify(cell)[0] for cell in cells}) == len(cells)
    assert [cell.batch_size for cell in cells[:30:6]] == [32, 2, 256, 8, 128]
    first = cells[0].config
    assert (first["form"], first["channels"], first["layout"]) == ("add_relu", 256, "nhwc")
    whole_network = [c for c in cells if "compiled" in c.config["peers"] and c.batch_size == 32]
    shapes = {(c.config.get("form"), c.config.get("channels")) for c in whole_network}
    assert {(s.form, s.channels) for s in module.resnet50_slots()} <= shapes


def test_one_of_the_cells_runs(scripts: Any) -> None:
    module: ModuleType = scripts("kernel_cells")
    slot = module.Slot("add_relu", 8, 6, 1)
    cell = module.kernel_cell("batch_renorm_triton", "relu", slot, 2, ("eager", "batch_norm"))
    done = execute(cell, device=torch.device("cpu"))
    assert (done.status, done.reason) == ("ok", "")
    assert Record.from_json(json.loads(json.dumps(done.to_json()))) == done


def rows(text: str, start: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(f"| {start}")]


def test_without_records_everything_is_unmeasured(scripts: Any) -> None:
    table: ModuleType = scripts("kernel_table")
    assert "unmeasured" in table.tables([])
    cell = scripts("kernel_cells").step_cells()[0]
    text = table.tables([record(cell, status="oom", reason="does not fit")])
    verdicts = [
        line.split("|")[3:5] for line in text.splitlines() if "| ≥" in line or "| ≤" in line
    ]
    assert len(verdicts) == 8
    assert all(found == [" unmeasured ", " open "] for found in verdicts)
    assert "- oom, batch_norm_triton: does not fit" in text


def test_the_table_of_a_finished_bench(scripts: Any) -> None:
    cells = scripts("kernel_cells").kernel_cells()
    table: ModuleType = scripts("kernel_table")
    records = [record(cell, metrics=kernel_metrics(cell)) for cell in cells]
    text = table.tables(records)
    assert f"### {CARD}" in text
    assert rows(text, "share of a copy")[0].endswith("| ≥ 0.9 | 0.95 | met |")
    assert rows(text, "eager / ours, all slots")[0].endswith("| ≥ 1.4 | 1.5 | met |")
    assert rows(text, "torch.compile / ours, backward")[0].endswith("| ≥ 1.3 | 1.5 | met |")
    # A nanosecond for a thousand elements: batch 32 of the whole network.
    assert f"| {32 * 11_113_984 * 1e-6:.1f} |" in rows(text, "**32, all 53**")[0]
    assert rows(text, "32×256×56² add_relu")[0].startswith(
        "| 32×256×56² add_relu | 3 | 25.7 | 0.95, 0.95 | 1.50 | 1.50 | 1.50 |"
    )
    assert "- compiled_max: 32×256×56² add_relu 1.50; 256×256×56² add_relu 1.50;" in text
    assert "- apex: unmeasured" in text


def test_a_target_is_open_while_figures_are_missing_and_missed_by_a_single_one(
    scripts: Any,
) -> None:
    cells = scripts("kernel_cells").kernel_cells()
    table: ModuleType = scripts("kernel_table")
    some = [record(cell, metrics=kernel_metrics(cell)) for cell in cells[:6]]
    text = table.tables(some)
    assert rows(text, "eager / ours, all slots")[0].endswith("| unmeasured | open |")
    assert rows(text, "eager / ours, each")[0].endswith("| 1.5 (6 of 80 measured) | open |")
    slow = record(cells[6], metrics=kernel_metrics(cells[6], ratio=0.9))
    assert "**missed**" in rows(table.tables([*some, slow]), "eager / ours, each")[0]


def test_old_code_and_eager_paths_are_left_out_and_the_latest_record_counts(scripts: Any) -> None:
    (cell, other) = scripts("kernel_cells").kernel_cells()[:2]
    table: ModuleType = scripts("kernel_table")
    early = record(cell, metrics=kernel_metrics(cell, ratio=9.0))
    late = record(cell, metrics=kernel_metrics(cell), started_at="2026-01-02T00:00:00+00:00")
    old = record(other, cell_id="0" * 16, metrics=kernel_metrics(other))
    eager = record(other, metrics=kernel_metrics(other), fallback="no kernels here")
    text = table.tables([late, early, old, eager])
    assert "1 records of older code are left out." in text
    assert rows(text, "eager / ours, each")[0].endswith("| 1.5 (1 of 80 measured) | open |")


def test_ratios_are_taken_within_one_record(scripts: Any) -> None:
    cell = scripts("kernel_cells").kernel_cells()[0]
    targets: ModuleType = scripts("kernel_targets")
    config = {**cell.config, "peers": ["compiled_max"]}
    again = dataclasses.replace(cell, config=config)
    slower = {name: 3 * value for name, value in kernel_metrics(again).items()}
    bench = targets.Bench(
        [
            record(cell, metrics=kernel_metrics(cell)),
            record(again, metrics=slower, started_at="2026-01-02T00:00:00+00:00"),
        ]
    )
    slots = [scripts("kernel_cells").Slot("add_relu", 256, 56, 3)]
    ours, theirs = bench.network(slots, 32, "both", "compiled")
    assert theirs / ours == pytest.approx(1.5)


def test_the_sweep_goes_on_where_it_was_and_names_the_best(
    scripts: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    tune: ModuleType = scripts("kernel_tune")
    watch = scripts("made_up_watch").MadeUpWatch(torch.device("cpu"), 0)
    slots = [tune.Slot("relu", 4, 5, 1)]
    monkeypatch.setattr(tune, "resnet50_slots", lambda: slots)
    state = tmp_path / "tune.json"
    assert not tune.sweep(state, 0.0, watch, (2,))
    assert len(json.loads(state.read_text())["2×4×5² relu"]) == 2  # one setting, and the time now
    assert tune.sweep(state, 60.0, watch, (2,))
    changes = sum(len(values) for _, values in tune.CONSTANTS.values())
    assert len(json.loads(state.read_text())["2×4×5² relu"]) == changes + 1
    count = len(watch.log)
    capsys.readouterr()
    assert tune.sweep(state, 60.0, watch, (2,))
    assert len(watch.log) == count
    # Every timer of the watch is slower than the one before it, so no change is a gain.
    assert "| 2×4×5² relu |" in capsys.readouterr().out.replace("nan", "")


def test_a_setting_is_what_the_kernels_are_launched_with(scripts: Any) -> None:
    tune: ModuleType = scripts("kernel_tune")
    from normbench.kernels.fused import batch_plans, tiles

    def now() -> tuple[int, int, int]:
        plan = batch_plans.plan(tiles.View(4096, 64, 1, True), torch.device("cpu"))
        return plan.cut.R * plan.cut.K, plan.cut.warps, int(plan.constants["STAGES"])

    usual = now()
    with tune.applied({"TILE": 4096, "STAGES": 4, "warps": 8}):
        assert now() == (4096, 8, 4)
    assert now() == usual == (tiles.TILE, 4, batch_plans.STAGES)


def test_best_together_takes_of_each_constant_what_saved_most(scripts: Any) -> None:
    tune: ModuleType = scripts("kernel_tune")
    times = {"TILE 1024": 0.97, "TILE 4096": 0.9, "STAGES 3": 0.995, "warps 8": tune.FAILED}
    assert tune.best_together(times) == {"TILE": 4096}
